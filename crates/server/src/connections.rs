//! Accepting connections: how many, and how long they may take to say what they want.

use crate::{ServerOptions, State, Worker, api, metrics::Metrics};
use ashlar_runtime::{CachePlace, Chat, Holding, Tokenizer};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::future::Future;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::Semaphore;

/// Pause after the system refused a connection, such as for want of file descriptors.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

/// What a server needs to know of its model.
pub struct Served {
    /// Its tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// How it talks, or why it does not.
    pub chat: Result<Chat, String>,
    /// Positions of one request.
    pub context: usize,
    /// Requests that can run and wait at the same time.
    pub places: usize,
    /// What its weights take, and where.
    pub holdings: Vec<Holding>,
    /// Where its caches lie.
    pub caches: Vec<CachePlace>,
}

/// Serves until `stop` is there, then lets running requests end, at most for [`ServerOptions::grace`].
///
/// # Errors
/// If the listener cannot be used.
pub async fn serve(
    listener: TcpListener,
    worker: Worker,
    served: Served,
    options: ServerOptions,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let state = Arc::new(State {
        worker: worker.handle(),
        tokenizer: served.tokenizer,
        chat: served.chat,
        context: served.context,
        places: served.places,
        metrics: Metrics::new(&served.holdings, served.caches),
        stopping: AtomicBool::new(false),
        next: AtomicU64::new(0),
        started: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        options,
    });
    let app = api::router(Arc::clone(&state));
    let places = Arc::new(Semaphore::new(state.options.connections));
    let open = GracefulShutdown::new();
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(state.options.read_timeout).max_headers(64);
    tokio::pin!(stop);
    loop {
        let place = tokio::select! {
            () = &mut stop => break,
            place = Arc::clone(&places).acquire_owned() => place,
        };
        // The semaphore is never closed.
        let Ok(place) = place else { break };
        let accepted = tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        // Small events should leave at once.
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(app.clone());
        let connection = open.watch(http.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended early");
            }
            drop(place);
        });
    }
    drop(listener);
    state.stopping.store(true, Ordering::Relaxed);
    tracing::info!("stopping; running requests may go on for {:?}", state.options.grace);
    if tokio::time::timeout(state.options.grace, open.shutdown()).await.is_err() {
        tracing::warn!("requests still running were ended");
        state.worker.cancel_all();
    }
    drop((state, app));
    tokio::task::spawn_blocking(move || worker.join()).await.map_err(io::Error::other)
}
