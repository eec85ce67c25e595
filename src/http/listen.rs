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
#[non_exhaustive]
pub struct ConnectionLimits {
    /// Maximum number of open connections. Further ones wait until others are closed.
    pub connections: usize,
    /// Maximum time to wait for the headers of a request, for the next request on a keep-alive connection, and for a
    /// client to receive more of a response.
    pub idle_timeout: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            connections: 512,
            idle_timeout: Duration::from_secs(30),
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
    let permits = Arc::new(Semaphore::new(limits.connections));
    tokio::pin!(stop);
    loop {
        // the semaphore is never closed
        let next = async {
            let permit = permits.clone().acquire_owned().await.ok();
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            () = &mut stop => break,
            next = next => next,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // the usual cause is too many open files: wait until others are closed
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // sends small responses without delay; an error only means that they are sent a little later
        let _ = stream.set_nodelay(true);
        let mut stream = TimeoutWriter::new(stream);
        stream.set_timeout(Some(limits.idle_timeout));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.idle_timeout)
            .serve_connection(
                TokioIo::new(Box::pin(stream)),
                TowerToHyperService::new(app.clone()),
            );
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended with an error");
            }
            drop(permit);
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

    const TEST_TIMEOUT: Duration = Duration::from_secs(20);
    /// Size of a long response in bytes: larger than the socket buffers of the system.
    const RESPONSE_BYTES: usize = 64 << 20;

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
            .route("/long", get(async || vec![b'x'; RESPONSE_BYTES]));
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

    async fn get_text(stream: &mut TcpStream, path: &str) -> String {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        response
    }

    #[tokio::test]
    async fn idle_connections_are_closed_so_that_others_are_accepted() {
        let limits = ConnectionLimits {
            connections: 3,
            idle_timeout: Duration::from_millis(200),
        };
        let (address, _stop, _server) = start(limits).await;
        let mut silent = vec![];
        for start in ["", "GET / HT", "GET / HTTP/1.1\r\nHost: localhost\r\nX-Y"] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(start.as_bytes()).await.unwrap();
            silent.push(stream);
        }
        // all connections are in use, until the server closes the idle ones
        let mut fourth = TcpStream::connect(address).await.unwrap();
        let response = timeout(TEST_TIMEOUT, get_text(&mut fourth, "/"))
            .await
            .unwrap();
        assert!(response.ends_with("here"), "{response}");
        for mut stream in silent {
            let mut rest = vec![];
            let closed = timeout(TEST_TIMEOUT, stream.read_to_end(&mut rest)).await;
            assert!(closed.is_ok(), "the connection is still open");
        }
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_its_response_is_disconnected() {
        let limits = ConnectionLimits {
            connections: 1,
            idle_timeout: Duration::from_millis(200),
        };
        let (address, _stop, _server) = start(limits).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = b"GET /long HTTP/1.1\r\nHost: localhost\r\n\r\n";
        stream.write_all(request).await.unwrap();
        // the client reads nothing and occupies the only connection, until the server closes it
        let mut second = TcpStream::connect(address).await.unwrap();
        let response = timeout(TEST_TIMEOUT, get_text(&mut second, "/"))
            .await
            .unwrap();
        assert!(response.ends_with("here"), "{response}");
        let mut rest = vec![];
        let read = timeout(TEST_TIMEOUT, stream.read_to_end(&mut rest))
            .await
            .unwrap();
        assert!(
            read.is_err() || rest.len() < RESPONSE_BYTES,
            "{} bytes",
            rest.len()
        );
    }

    #[tokio::test]
    async fn running_requests_are_answered_before_the_server_stops() {
        let (address, stop, server) = start(ConnectionLimits::default()).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        let running = tokio::spawn(async move { get_text(&mut stream, "/slow").await });
        tokio::time::sleep(Duration::from_millis(100)).await;
        stop.send(()).unwrap();
        assert!(running.await.unwrap().ends_with("late"));
        timeout(TEST_TIMEOUT, server).await.unwrap().unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }
}
