//! Image hosts that fail: each failure is an error that names the image and the reason, within the time limit, and the
//! next request succeeds.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{SHAPES, SHAPES_CONFIG, app_with, batch_request, post, prompt_request};

/// `IMAGE_TIMEOUT_S` in these tests.
const TIMEOUT_S: u64 = 2;

/// A response with these headers and this body, even if they contradict each other.
fn response(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\n{headers}Connection: close\r\n\r\n");
    [head.as_bytes(), body].concat()
}

/// A response with the right `Content-Length`.
fn complete_response(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let headers = format!("{headers}Content-Length: {}\r\n", body.len());
    response(status, &headers, body)
}

/// A small gzip file that decompresses to 30 MB.
fn gzip_bomb() -> Vec<u8> {
    use std::io::Write;
    let mut compressed = flate2::write::GzEncoder::new(vec![], flate2::Compression::best());
    compressed.write_all(&vec![0; 30_000_000]).unwrap();
    compressed.finish().unwrap()
}

/// Responds to one request with the failure that its path names.
async fn respond(mut stream: TcpStream, count: &AtomicUsize) -> std::io::Result<()> {
    let mut request = vec![0; 8192];
    let length = stream.read(&mut request).await?;
    let request = String::from_utf8_lossy(&request[..length]).into_owned();
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let image = |headers: &str| complete_response("200 OK", headers, SHAPES);
    let length_of = |length: usize| format!("Content-Length: {length}\r\n");
    let redirect =
        |location: &str| complete_response("302 Found", &format!("Location: {location}\r\n"), b"");
    let number = count.fetch_add(1, Ordering::SeqCst);
    let bytes = match path.split('?').next().unwrap_or_default() {
        "/good.png" => image(""),
        "/silent.png" => {
            tokio::time::sleep(Duration::from_secs(60)).await;
            vec![]
        }
        "/slow.png" => {
            stream
                .write_all(&response("200 OK", &length_of(1000), b""))
                .await?;
            loop {
                stream.write_all(b"x").await?;
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        }
        "/endless.png" => {
            let head = response("200 OK", "Transfer-Encoding: chunked\r\n", b"");
            stream.write_all(&head).await?;
            loop {
                let chunk = [&b"10000\r\n"[..], &[b'x'; 0x10000], b"\r\n"].concat();
                stream.write_all(&chunk).await?;
            }
        }
        "/closed.png" => vec![],
        "/garbage.png" => b"this is not HTTP\r\n\r\n".to_vec(),
        "/cut.png" => response(
            "200 OK",
            &length_of(SHAPES.len()),
            &SHAPES[..SHAPES.len() / 2],
        ),
        "/short.png" => response("200 OK", &length_of(SHAPES.len() / 2), SHAPES),
        "/cut-head.png" => b"HTTP/1.1 200 OK\r\nContent-Le".to_vec(),
        "/chunks.png" => response("200 OK", "Transfer-Encoding: chunked\r\n", b"zz\r\nx"),
        "/long-head.png" => image(&format!("X-Long: {}\r\n", "x".repeat(2_000_000))),
        "/two-lengths.png" => {
            response("200 OK", "Content-Length: 5\r\nContent-Length: 9\r\n", b"x")
        }
        "/empty.png" => complete_response("200 OK", "", b""),
        "/page.png" => complete_response(
            "200 OK",
            "Content-Type: text/html\r\n",
            b"<html>please log in</html>",
        ),
        "/large.png" => complete_response("200 OK", "", &vec![0; 3_000_000]),
        "/claims.png" => response("200 OK", &length_of(usize::MAX / 4), b"x"),
        "/bomb.png" => complete_response("200 OK", "Content-Encoding: gzip\r\n", &gzip_bomb()),
        "/unasked-304.png" => response("304 Not Modified", "", b""),
        "/loop.png" => redirect("/loop.png"),
        "/chain.png" => redirect(&format!("/chain.png?{number}")),
        "/nowhere.png" => complete_response("302 Found", "", b""),
        "/private.png" => redirect("http://10.0.0.1/a.png"),
        "/metadata.png" => redirect("http://169.254.169.254/latest/meta-data/"),
        "/loopback6.png" => redirect("http://[::1]/a.png"),
        "/file.png" => redirect("file:///etc/passwd"),
        "/data.png" => redirect("data:image/png;base64,AAAA"),
        "/ftp.png" => redirect("ftp://127.0.0.1/a.png"),
        "/later.png" => complete_response("429 Too Many Requests", "Retry-After: 3600\r\n", b""),
        // the first two requests fail, and later ones succeed
        "/busy.png" if number < 2 => {
            complete_response("429 Too Many Requests", "Retry-After: 0\r\n", b"")
        }
        "/down.png" if number < 1 => {
            complete_response("503 Service Unavailable", "Retry-After: 1\r\n", b"")
        }
        "/busy.png" | "/down.png" => image(""),
        status => {
            let status = status.trim_start_matches('/').trim_end_matches(".png");
            complete_response(&format!("{status} Status"), "", b"{\"detail\": \"no\"}")
        }
    };
    stream.write_all(&bytes).await?;
    stream.shutdown().await
}

/// Starts a failing host. Returns its address and its number of requests.
async fn failing_host() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let count = counter.clone();
            tokio::spawn(async move { respond(stream, &count).await });
        }
    });
    (address, count)
}

/// For each failure the status of the response, and a part of its error.
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
async fn every_failure_of_an_image_host_is_an_error_within_the_timeout() {
    let (host, _) = failing_host().await;
    let timeout = TIMEOUT_S.to_string();
    let app = app_with(&[
        "--allowed-image-hosts",
        "127.0.0.1",
        "--image-timeout-s",
        &timeout,
        "--max-image-bytes",
        "2000000",
    ]);
    let url = |name: &str| format!("http://{host}/{name}");
    let good = prompt_request(SHAPES_CONFIG, &url("good.png"), "red circle");
    assert_eq!(post(&app, "/predict", &good).await.0, StatusCode::OK);
    for (name, status, reason) in FAILURES {
        let request = prompt_request(SHAPES_CONFIG, &url(name), "red circle");
        let start = Instant::now();
        let (response_status, body) = post(&app, "/predict", &request).await;
        assert!(
            start.elapsed() < Duration::from_secs(TIMEOUT_S + 2),
            "{name}"
        );
        assert_eq!(response_status.as_u16(), status, "{name}: {body}");
        let error = body["error"].as_str().unwrap();
        assert!(error.contains(reason), "{name}: {error}");
        // after a redirect, the error may name the rejected host instead
        let is_named = error.contains(name) || reason == "ALLOWED_IMAGE_HOSTS";
        assert!(is_named, "{name}: {error}");
    }
    // in one batch, each failure is an error of its own task only, and every result belongs to its task
    let mut images: Vec<String> = FAILURES.iter().map(|(name, ..)| url(name)).collect();
    images.insert(FAILURES.len() / 2, url("good.png?again"));
    let images: Vec<&str> = images.iter().map(String::as_str).collect();
    let (status, body) = post(&app, "/predict", &batch_request(SHAPES_CONFIG, &images)).await;
    assert_eq!(status, StatusCode::OK);
    let results = body["results"].as_array().unwrap();
    assert_eq!(results.len(), images.len());
    for (image, result) in images.iter().zip(results) {
        let is_good = image.ends_with("again");
        assert_eq!(result["result"].is_array(), is_good, "{image}: {result}");
        assert_eq!(result["error"].is_string(), !is_good, "{image}: {result}");
    }
    assert_eq!(post(&app, "/predict", &good).await.0, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_host_is_asked_again_after_its_retry_after() {
    for (name, requests, min_seconds) in [("busy.png", 3, 0), ("down.png", 2, 1)] {
        let (host, count) = failing_host().await;
        let app = app_with(&["--allowed-image-hosts", "127.0.0.1"]);
        let url = format!("http://{host}/{name}");
        let request = prompt_request(SHAPES_CONFIG, &url, "red circle");
        let start = Instant::now();
        let (status, body) = post(&app, "/predict", &request).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        assert_eq!(count.load(Ordering::SeqCst), requests, "{name}");
        assert!(
            start.elapsed() >= Duration::from_secs(min_seconds),
            "{name}"
        );
    }
}
