//! Accepts connections: limits their number, and closes those that are idle for too long.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutWriter;

/// Limits for client connections.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionLimits {
    /// Maximum number of open connections. Further ones wait until others are closed.
    pub connections: usize,
    /// Maximum time to wait for the headers of a request, for the next request on a keep-alive connection, and for a
    /// client to receive more of a response.
    pub idle: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            connections: 512,
            idle: Duration::from_secs(30),
        }
    }
}

/// Serves connections until `stop` resolves, and then finishes the requests that are running.
pub async fn serve(
    listener: TcpListener,
    app: Router,
    limits: ConnectionLimits,
    stop: impl Future<Output = ()>,
) {
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(limits.connections));
    tokio::pin!(stop);
    loop {
        // the semaphore is never closed
        let next = async {
            let place = places.clone().acquire_owned().await.ok();
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            () = &mut stop => break,
            next = next => next,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // the usual cause is too many open files: wait until others are closed
                tracing::warn!(%error, "a connection could not be taken");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // sends small responses without delay; an error only means that they are sent a little later
        let _ = stream.set_nodelay(true);
        let mut stream = TimeoutWriter::new(stream);
        stream.set_timeout(Some(limits.idle));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.idle)
            .serve_connection(
                TokioIo::new(Box::pin(stream)),
                TowerToHyperService::new(app.clone()),
            );
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended");
            }
            drop(place);
        });
    }
    drop(listener);
    graceful.shutdown().await;
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::time::timeout;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);
    /// Size of a long response in bytes: larger than the socket buffers of the system.
    const ANSWER: usize = 64 << 20;

    /// Starts a server with the given limits. Returns its address, a sender that stops it, and its task.
    async fn start(
        limits: ConnectionLimits,
    ) -> (
        std::net::SocketAddr,
        tokio::sync::oneshot::Sender<()>,
        tokio::task::JoinHandle<()>,
    ) {
        let late = async || {
            tokio::time::sleep(Duration::from_millis(300)).await;
            "late"
        };
        let app = Router::new()
            .route("/", get(async || "here"))
            .route("/slow", get(late))
            .route("/long", get(async || vec![b'x'; ANSWER]));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let stopped = async {
            // dropping the sender also stops the server
            let _ = stopped.await;
        };
        let server = tokio::spawn(serve(listener, app, limits, stopped));
        (address, stop, server)
    }

    async fn answer(stream: &mut TcpStream, path: &str) -> String {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn silent_connections_are_closed_and_make_room() {
        let limits = ConnectionLimits {
            connections: 3,
            idle: Duration::from_millis(200),
        };
        let (address, _stop, _server) = start(limits).await;
        let mut silent = vec![];
        for begin in ["", "GET / HT", "GET / HTTP/1.1\r\nHost: localhost\r\nX-Y"] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(begin.as_bytes()).await.unwrap();
            silent.push(stream);
        }
        // all connections are in use, until the server closes the idle ones
        let mut fourth = TcpStream::connect(address).await.unwrap();
        let answered = timeout(LONG, answer(&mut fourth, "/")).await.unwrap();
        assert!(answered.ends_with("here"), "{answered}");
        for mut stream in silent {
            let mut rest = vec![];
            let closed = timeout(LONG, stream.read_to_end(&mut rest)).await;
            assert!(closed.is_ok(), "it is still open");
        }
    }

    #[tokio::test]
    async fn a_client_that_takes_no_answer_makes_room() {
        let limits = ConnectionLimits {
            connections: 1,
            idle: Duration::from_millis(200),
        };
        let (address, _stop, _server) = start(limits).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = b"GET /long HTTP/1.1\r\nHost: localhost\r\n\r\n";
        stream.write_all(request).await.unwrap();
        // the client reads nothing and occupies the only connection, until the server closes it
        let mut second = TcpStream::connect(address).await.unwrap();
        let answered = timeout(LONG, answer(&mut second, "/")).await.unwrap();
        assert!(answered.ends_with("here"), "{answered}");
        let mut rest = vec![];
        let read = timeout(LONG, stream.read_to_end(&mut rest)).await.unwrap();
        assert!(read.is_err() || rest.len() < ANSWER, "{} bytes", rest.len());
    }

    #[tokio::test]
    async fn what_is_under_way_is_answered_before_it_stops() {
        let (address, stop, server) = start(ConnectionLimits::default()).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        let asked = tokio::spawn(async move { answer(&mut stream, "/slow").await });
        tokio::time::sleep(Duration::from_millis(100)).await;
        stop.send(()).unwrap();
        assert!(asked.await.unwrap().ends_with("late"));
        timeout(LONG, server).await.unwrap().unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }
}
