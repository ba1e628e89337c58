//! The thread that owns the engine.
//!
//! It takes messages between batches, so a request that comes or goes is heard within a step. After every step it leaves the
//! engine's counts where `/metrics` reads them.

use ashlar_runtime::engine::{Engine, EngineStats, Refused, Request, Ticket};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use tokio::sync::oneshot;

enum Command {
    Submit(Box<Request>, oneshot::Sender<Result<Ticket, Refused>>),
    Cancel(u64),
    CancelAll,
}

/// The running thread.
pub struct Worker {
    handle: Handle,
    thread: JoinHandle<()>,
}

/// For talking to it.
#[derive(Clone)]
pub(crate) struct Handle {
    commands: Sender<Command>,
    stats: Arc<Mutex<EngineStats>>,
}

impl Worker {
    /// Starts with an engine, which has nothing to do yet.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub fn start(engine: Engine) -> std::io::Result<Self> {
        let (commands, received) = channel();
        let stats = Arc::new(Mutex::new(engine.stats()));
        let left = Arc::clone(&stats);
        let thread = std::thread::Builder::new().name("engine".into()).spawn(move || work(engine, &received, &left))?;
        Ok(Self { handle: Handle { commands, stats }, thread })
    }

    pub(crate) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Ends with the last request; all handles must be gone.
    pub(crate) fn join(self) {
        let Self { handle, thread } = self;
        drop(handle);
        if thread.join().is_err() {
            tracing::error!("the engine's thread ended in a panic");
        }
    }
}

impl Handle {
    /// Hands a request over and waits for the engine's yes or no; `None` if the engine is gone.
    pub async fn submit(&self, request: Request) -> Option<Result<Ticket, Refused>> {
        let (answer, answered) = oneshot::channel();
        self.commands.send(Command::Submit(Box::new(request), answer)).ok()?;
        answered.await.ok()
    }

    /// Ends a request, if it still runs.
    pub fn cancel(&self, id: u64) {
        // An engine that is gone runs nothing.
        let _ = self.commands.send(Command::Cancel(id));
    }

    /// Ends all requests.
    pub fn cancel_all(&self) {
        let _ = self.commands.send(Command::CancelAll);
    }

    /// The engine's counts after its last step.
    pub fn stats(&self) -> EngineStats {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn work(mut engine: Engine, commands: &Receiver<Command>, stats: &Mutex<EngineStats>) {
    loop {
        if engine.is_idle() {
            match commands.recv() {
                Ok(command) => obey(&mut engine, command),
                Err(_) => return,
            }
        }
        loop {
            match commands.try_recv() {
                Ok(command) => obey(&mut engine, command),
                Err(TryRecvError::Empty) => break,
                // Nobody can ask for more; what runs is finished.
                Err(TryRecvError::Disconnected) if engine.is_idle() => return,
                Err(TryRecvError::Disconnected) => break,
            }
        }
        if let Err(error) = engine.step() {
            tracing::error!(%error, "a batch failed; its requests were told");
        }
        *stats.lock().unwrap_or_else(PoisonError::into_inner) = engine.stats();
    }
}

fn obey(engine: &mut Engine, command: Command) {
    match command {
        Command::Submit(request, answer) => {
            // Who no longer waits for the answer will not listen to the text either: the sink tells.
            let _ = answer.send(engine.submit(*request));
        }
        Command::Cancel(id) => engine.cancel(id),
        Command::CancelAll => engine.cancel_all(),
    }
}
