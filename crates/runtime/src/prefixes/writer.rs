//! The thread that writes blocks, so that no step waits for the disk.

use super::{Key, Shared, file};
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// A block to be written.
pub struct Job {
    pub key: Key,
    pub number: u64,
    pub bytes: Vec<u8>,
}

enum Order {
    Write(Job),
    /// Answered when everything before it is done.
    Tell(Sender<()>),
}

/// The running thread; dropping it waits until all is written.
pub struct Writer {
    /// `None` once it ends.
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub fn start(shared: Arc<Shared>) -> std::io::Result<Self> {
        let (orders, received) = channel();
        let thread = std::thread::Builder::new().name("kv-dir".into()).spawn(move || obey(&shared, &received))?;
        Ok(Self { orders: Some(orders), thread: Some(thread) })
    }

    /// How much may wait is the index's to say.
    pub fn put(&self, job: Job) {
        self.send(Order::Write(job));
    }

    pub fn flush(&self) {
        let (done, told) = channel();
        self.send(Order::Tell(done));
        // An error is a thread that is gone: nothing is written any more.
        let _ = told.recv();
    }

    fn send(&self, order: Order) {
        if let Some(orders) = &self.orders {
            let _ = orders.send(order);
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.orders = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that writes keys and values ended in a panic");
        }
    }
}

fn obey(shared: &Shared, orders: &Receiver<Order>) {
    let mut failing = false;
    while let Ok(order) = orders.recv() {
        match order {
            Order::Write(job) => failing = !write(shared, &job, failing),
            Order::Tell(done) => drop(done.send(())),
        }
    }
}

/// Whether it was written. `failing`: the one before was not, and has been told.
fn write(shared: &Shared, job: &Job, failing: bool) -> bool {
    let (waited, needed) = (job.bytes.len() as u64, (job.bytes.len() + file::HEAD) as u64);
    let fits = needed <= shared.limit;
    if !fits && !failing {
        tracing::warn!(needed, limit = shared.limit, "a block is larger than all blocks may be: none is kept");
    }
    let put = || file::write(&shared.dir, &shared.identity, &job.key, job.number, &job.bytes);
    let written = fits.then(|| {
        shared.make_room(needed);
        let written = put();
        if !written.as_ref().is_err_and(|error| error.kind() == ErrorKind::StorageFull) {
            return written;
        }
        // A full disk holds no more than it does: old blocks make room, as they do at the limit.
        shared.give_up(needed);
        put()
    });
    if let (Some(Err(error)), false) = (&written, failing) {
        tracing::warn!(dir = %shared.dir.display(), %error, "keys and values are not kept");
    }
    let file = written.and_then(Result::ok);
    shared.index().written(job.key, waited, file);
    file.is_some()
}
