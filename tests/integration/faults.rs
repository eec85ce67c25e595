//! Hosts of images that fail in every way: each failure is an error that names the image and the reason, in time, and
//! the server answers the next request.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{SHAPES, SHAPES_CONFIG, app_with, batch_request, post, prompt_request};

/// Seconds that an image may take here.
const TIMEOUT: u64 = 2;

/// A head, and the bytes after it whatever the head says of them.
fn answer(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\n{headers}Connection: close\r\n\r\n");
    [head.as_bytes(), body].concat()
}

/// An answer whose head is right.
fn whole(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let headers = format!("{headers}Content-Length: {}\r\n", body.len());
    answer(status, &headers, body)
}

/// Many bytes that a gzip of few unpacks to.
fn bomb() -> Vec<u8> {
    use std::io::Write;
    let mut packed = flate2::write::GzEncoder::new(vec![], flate2::Compression::best());
    packed.write_all(&vec![0; 30_000_000]).unwrap();
    packed.finish().unwrap()
}

/// Answers one request with the failure that its path names.
async fn fail(mut stream: TcpStream, count: &AtomicUsize) -> std::io::Result<()> {
    let mut request = vec![0; 8192];
    let length = stream.read(&mut request).await?;
    let request = String::from_utf8_lossy(&request[..length]).into_owned();
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let image = |headers: &str| whole("200 OK", headers, SHAPES);
    let length_of = |length: usize| format!("Content-Length: {length}\r\n");
    let to = |place: &str| whole("302 Found", &format!("Location: {place}\r\n"), b"");
    let number = count.fetch_add(1, Ordering::SeqCst);
    let sent = match path.split('?').next().unwrap_or_default() {
        "/well.png" => image(""),
        "/silent.png" => {
            tokio::time::sleep(Duration::from_secs(60)).await;
            vec![]
        }
        "/slow.png" => {
            stream
                .write_all(&answer("200 OK", &length_of(1000), b""))
                .await?;
            loop {
                stream.write_all(b"x").await?;
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        }
        "/endless.png" => {
            let head = answer("200 OK", "Transfer-Encoding: chunked\r\n", b"");
            stream.write_all(&head).await?;
            loop {
                let chunk = [&b"10000\r\n"[..], &[b'x'; 0x10000], b"\r\n"].concat();
                stream.write_all(&chunk).await?;
            }
        }
        "/closed.png" => vec![],
        "/garbage.png" => b"this is no HTTP\r\n\r\n".to_vec(),
        "/cut.png" => answer(
            "200 OK",
            &length_of(SHAPES.len()),
            &SHAPES[..SHAPES.len() / 2],
        ),
        "/short.png" => answer("200 OK", &length_of(SHAPES.len() / 2), SHAPES),
        "/cut-head.png" => b"HTTP/1.1 200 OK\r\nContent-Le".to_vec(),
        "/chunks.png" => answer("200 OK", "Transfer-Encoding: chunked\r\n", b"zz\r\nx"),
        "/long-head.png" => image(&format!("X-Long: {}\r\n", "x".repeat(2_000_000))),
        "/two-lengths.png" => answer("200 OK", "Content-Length: 5\r\nContent-Length: 9\r\n", b"x"),
        "/empty.png" => whole("200 OK", "", b""),
        "/page.png" => whole(
            "200 OK",
            "Content-Type: text/html\r\n",
            b"<html>please log in</html>",
        ),
        "/large.png" => whole("200 OK", "", &vec![0; 3_000_000]),
        "/claims.png" => answer("200 OK", &length_of(usize::MAX / 4), b"x"),
        "/bomb.png" => whole("200 OK", "Content-Encoding: gzip\r\n", &bomb()),
        "/unasked-304.png" => answer("304 Not Modified", "", b""),
        "/loop.png" => to("/loop.png"),
        "/chain.png" => to(&format!("/chain.png?{number}")),
        "/nowhere.png" => whole("302 Found", "", b""),
        "/private.png" => to("http://10.0.0.1/a.png"),
        "/metadata.png" => to("http://169.254.169.254/latest/meta-data/"),
        "/loopback6.png" => to("http://[::1]/a.png"),
        "/file.png" => to("file:///etc/passwd"),
        "/data.png" => to("data:image/png;base64,AAAA"),
        "/ftp.png" => to("ftp://127.0.0.1/a.png"),
        "/later.png" => whole("429 Too Many Requests", "Retry-After: 3600\r\n", b""),
        // twice, and then it has recovered
        "/busy.png" if number < 2 => whole("429 Too Many Requests", "Retry-After: 0\r\n", b""),
        "/down.png" if number < 1 => whole("503 Service Unavailable", "Retry-After: 1\r\n", b""),
        "/busy.png" | "/down.png" => image(""),
        status => {
            let status = status.trim_start_matches('/').trim_end_matches(".png");
            whole(&format!("{status} Status"), "", b"{\"detail\": \"no\"}")
        }
    };
    stream.write_all(&sent).await?;
    stream.shutdown().await
}

/// A host that fails, and how many requests it got.
async fn start() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let count = counted.clone();
            tokio::spawn(async move { fail(stream, &count).await });
        }
    });
    (address, count)
}

/// The failures, the status that they are answered with, and what the error says beside the image's name.
const FAILURES: [(&str, u16, &str); 38] = [
    ("silent.png", 502, "IMAGE_TIMEOUT_S"),
    ("slow.png", 502, "IMAGE_TIMEOUT_S"),
    ("endless.png", 422, "MAX_IMAGE_BYTES"),
    ("closed.png", 502, "cannot fetch"),
    ("garbage.png", 502, "cannot fetch"),
    ("cut.png", 502, "cannot fetch"),
    ("short.png", 422, ""),
    ("cut-head.png", 502, "cannot fetch"),
    ("chunks.png", 502, "cannot fetch"),
    ("long-head.png", 502, "cannot fetch"),
    ("two-lengths.png", 502, "cannot fetch"),
    ("empty.png", 422, ""),
    ("page.png", 422, ""),
    ("large.png", 422, "MAX_IMAGE_BYTES"),
    ("claims.png", 422, "MAX_IMAGE_BYTES"),
    ("bomb.png", 422, "MAX_IMAGE_BYTES"),
    ("unasked-304.png", 502, "304"),
    ("loop.png", 502, "redirects"),
    ("chain.png", 502, "redirects"),
    ("nowhere.png", 502, "no Location header with an http(s) URL"),
    ("private.png", 422, "ALLOWED_IMAGE_HOSTS"),
    ("metadata.png", 422, "ALLOWED_IMAGE_HOSTS"),
    ("loopback6.png", 422, "ALLOWED_IMAGE_HOSTS"),
    ("file.png", 502, "no Location header with an http(s) URL"),
    ("data.png", 502, "no Location header with an http(s) URL"),
    ("ftp.png", 502, "no Location header with an http(s) URL"),
    ("later.png", 502, "3600 s"),
    ("400.png", 502, "400"),
    ("401.png", 502, "401"),
    ("402.png", 502, "402"),
    ("403.png", 502, "403"),
    ("404.png", 502, "404"),
    ("410.png", 502, "410"),
    ("429.png", 502, "429"),
    ("500.png", 502, "500"),
    ("502.png", 502, "502"),
    ("503.png", 502, "503"),
    ("504.png", 502, "504"),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_failure_of_a_host_is_an_error_in_time() {
    let (host, _) = start().await;
    let timeout = TIMEOUT.to_string();
    let app = app_with(&[
        "--allowed-image-hosts",
        "127.0.0.1",
        "--image-timeout-s",
        &timeout,
        "--max-image-bytes",
        "2000000",
    ]);
    let url = |name: &str| format!("http://{host}/{name}");
    let well = prompt_request(SHAPES_CONFIG, &url("well.png"), "red circle");
    assert_eq!(post(&app, "/predict", &well).await.0, StatusCode::OK);
    for (name, status, reason) in FAILURES {
        let request = prompt_request(SHAPES_CONFIG, &url(name), "red circle");
        let start = Instant::now();
        let (answered, body) = post(&app, "/predict", &request).await;
        assert!(start.elapsed() < Duration::from_secs(TIMEOUT + 2), "{name}");
        assert_eq!(answered.as_u16(), status, "{name}: {body}");
        let error = body["error"].as_str().unwrap();
        assert!(error.contains(reason), "{name}: {error}");
        // a redirect may lead to a host that is refused by its own name
        let is_named = error.contains(name) || reason == "ALLOWED_IMAGE_HOSTS";
        assert!(is_named, "{name}: {error}");
    }
    // all of them in one batch cost only themselves, and nobody is mistaken for another
    let mut images: Vec<String> = FAILURES.iter().map(|(name, ..)| url(name)).collect();
    images.insert(FAILURES.len() / 2, url("well.png?again"));
    let images: Vec<&str> = images.iter().map(String::as_str).collect();
    let (status, body) = post(&app, "/predict", &batch_request(SHAPES_CONFIG, &images)).await;
    assert_eq!(status, StatusCode::OK);
    let results = body["results"].as_array().unwrap();
    assert_eq!(results.len(), images.len());
    for (image, result) in images.iter().zip(results) {
        let is_well = image.ends_with("again");
        assert_eq!(result["result"].is_array(), is_well, "{image}: {result}");
        assert_eq!(result["error"].is_string(), !is_well, "{image}: {result}");
    }
    assert_eq!(post(&app, "/predict", &well).await.0, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_host_is_asked_again_when_it_says() {
    for (name, requests, least) in [("busy.png", 3, 0), ("down.png", 2, 1)] {
        let (host, count) = start().await;
        let app = app_with(&["--allowed-image-hosts", "127.0.0.1"]);
        let url = format!("http://{host}/{name}");
        let request = prompt_request(SHAPES_CONFIG, &url, "red circle");
        let start = Instant::now();
        let (status, body) = post(&app, "/predict", &request).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        assert_eq!(count.load(Ordering::SeqCst), requests, "{name}");
        assert!(start.elapsed() >= Duration::from_secs(least), "{name}");
    }
}
