//! From which addresses images are fetched. Private addresses are rejected in every notation, unless a setting allows
//! them. SECURITY.md has the rules.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use groundling::label_studio::LabelStudio;
use groundling::media::guard::check_literal;
use groundling::media::{Location, LocationError, ResolveContext, locate};
use serde_json::json;

use crate::server_process::{ServerProcess, model_dir};
use crate::support::{SHAPES, SHAPES_CONFIG, app_with, post, prompt_request};

/// What a value in a task leads to.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Verdict {
    /// A private address: rejected before a connection is made.
    Private,
    /// A public address: the image is fetched.
    Public,
    /// A URL of Label Studio: fetched with the token.
    Studio,
    /// Not a URL that groundling fetches.
    Unsupported,
    /// A host name: the addresses that it resolves to are checked later.
    Name,
    /// A file in the folder for local files.
    File,
    /// A file outside that folder.
    Outside,
    /// A data URI.
    Inline,
}

use Verdict::{File, Inline, Name, Outside, Private, Public, Studio, Unsupported};

/// Values of tasks and what each leads to.
const VALUES: [(&str, Verdict); 124] = [
    // IPv4 in every notation that URLs allow
    ("http://127.0.0.1/a.png", Private),
    ("HTTP://127.0.0.1/a.png", Private),
    ("https://127.0.0.1/a.png", Private),
    ("  http://127.0.0.1/a.png ", Private),
    ("http://127.0.0.1:9090/predict", Private),
    ("http://127.1/a.png", Private),
    ("http://127.0.1/a.png", Private),
    ("http://127.255.255.254/a.png", Private),
    ("http://2130706433/a.png", Private),
    ("http://0x7f000001/a.png", Private),
    ("http://0X7F.1/a.png", Private),
    ("http://0x7f.0x0.0x0.0x1/a.png", Private),
    ("http://0177.0.0.1/a.png", Private),
    ("http://017700000001/a.png", Private),
    ("http://0177.0x0.0.1/a.png", Private),
    ("http://127.0.0.1./a.png", Private),
    ("http://127.000.000.001/a.png", Private),
    ("http://%31%32%37.0.0.1/a.png", Private),
    ("http://127%2e0%2e0%2e1/a.png", Private),
    ("http://１２７.0.0.1/a.png", Private),
    ("http://127。0。0。1/a.png", Private),
    ("http://①②⑦.⓪.⓪.①/a.png", Private),
    ("http://0/a.png", Private),
    ("http://0.0.0.0/a.png", Private),
    ("http://00000000/a.png", Private),
    // other parts of a URL next to the host
    ("http://user:password@127.0.0.1/a.png", Private),
    ("http://8.8.8.8@127.0.0.1/a.png", Private),
    ("http://8.8.8.8%40127.0.0.1/a.png", Unsupported),
    ("http://127.0.0.1#@8.8.8.8/a.png", Private),
    ("http://127.0.0.1?@8.8.8.8/a.png", Private),
    ("http://127.0.0.1\\@8.8.8.8/a.png", Private),
    ("http://127.0.0.1%2f@8.8.8.8/a.png", Public),
    ("http:///127.0.0.1/a.png", Private),
    ("http:////127.0.0.1/a.png", Private),
    ("http://\\127.0.0.1/a.png", Private),
    ("http://127.0\n.0.1/a.png", Private),
    ("http://127.0\t.0.1/a.png", Private),
    ("http://127.0.0.1:80:80/a.png", Unsupported),
    ("http://127.0.0.1:99999/a.png", Unsupported),
    ("http://256.256.256.256/a.png", Unsupported),
    ("http://0x100000000/a.png", Unsupported),
    ("http:127.0.0.1/a.png", Unsupported),
    ("http:/127.0.0.1/a.png", Unsupported),
    // IPv4 networks that are not on the public internet
    ("http://10.0.0.1/a.png", Private),
    ("http://10.255.255.255/a.png", Private),
    ("http://100.64.0.1/a.png", Private),
    ("http://100.127.255.255/a.png", Private),
    ("http://169.254.169.254/latest/meta-data/", Private),
    ("http://169.254.170.2/v2/credentials", Private),
    ("http://172.16.0.1/a.png", Private),
    ("http://172.31.255.255/a.png", Private),
    ("http://192.0.0.1/a.png", Private),
    ("http://192.0.2.1/a.png", Private),
    ("http://192.168.0.1/a.png", Private),
    ("http://198.18.0.1/a.png", Private),
    ("http://198.51.100.1/a.png", Private),
    ("http://203.0.113.1/a.png", Private),
    ("http://224.0.0.1/a.png", Private),
    ("http://239.255.255.250/a.png", Private),
    ("http://240.0.0.1/a.png", Private),
    ("http://255.255.255.255/a.png", Private),
    // IPv6, and IPv4 addresses inside IPv6 addresses
    ("http://[::1]/a.png", Private),
    ("http://[::]/a.png", Private),
    ("http://[0:0:0:0:0:0:0:1]/a.png", Private),
    (
        "http://[0000:0000:0000:0000:0000:0000:0000:0001]:8080/a.png",
        Private,
    ),
    ("http://[::ffff:127.0.0.1]/a.png", Private),
    ("http://[::ffff:7f00:1]/a.png", Private),
    ("http://[::ffff:10.0.0.1]/a.png", Private),
    ("http://[::127.0.0.1]/a.png", Private),
    ("http://[::8.8.8.8]/a.png", Private),
    ("http://[64:ff9b::127.0.0.1]/a.png", Private),
    ("http://[64:ff9b::169.254.169.254]/a.png", Private),
    ("http://[64:ff9b:1::1]/a.png", Private),
    ("http://[2002:7f00:1::]/a.png", Private),
    ("http://[2002:a9fe:a9fe::]/a.png", Private),
    ("http://[2001::1]/a.png", Private),
    ("http://[2001:db8::1]/a.png", Private),
    ("http://[3fff::1]/a.png", Private),
    ("http://[100::1]/a.png", Private),
    ("http://[5f00::1]/a.png", Private),
    ("http://[fc00::1]/a.png", Private),
    ("http://[fd00:ec2::254]/latest/meta-data/", Private),
    ("http://[fe80::1]/a.png", Private),
    ("http://[fe80::1%25eth0]/a.png", Unsupported),
    ("http://[fec0::1]/a.png", Private),
    ("http://[ff02::1]/a.png", Private),
    ("http://[::1/a.png", Unsupported),
    ("http://::1/a.png", Unsupported),
    // public addresses in usual and unusual notations
    ("http://8.8.8.8/a.png", Public),
    ("https://8.8.8.8:8443/a.png", Public),
    ("http://134744072/a.png", Public),
    ("http://0x8.010.8.8/a.png", Public),
    ("http://172.15.255.255/a.png", Public),
    ("http://172.32.0.1/a.png", Public),
    ("http://100.128.0.1/a.png", Public),
    ("http://[2606:4700::1111]/a.png", Public),
    ("http://[::ffff:8.8.8.8]/a.png", Public),
    ("http://[64:ff9b::8.8.8.8]/a.png", Public),
    ("http://[2002:808:808::]/a.png", Public),
    // host names
    ("http://localhost/a.png", Name),
    ("http://localhost./a.png", Name),
    ("http://LOCALHOST/a.png", Name),
    ("http://images.example.org/a.png", Name),
    ("http://bücher.example/a.png", Name),
    ("http://127.0.0.1.example.org/a.png", Name),
    // schemes
    ("ftp://127.0.0.1/a.png", Unsupported),
    ("file:///etc/passwd", Unsupported),
    ("gopher://127.0.0.1:6379/_INFO", Unsupported),
    ("dict://127.0.0.1:11211/stats", Unsupported),
    ("unix:/var/run/docker.sock", Unsupported),
    ("javascript:alert(1)", Unsupported),
    ("DATA:image/png;base64,AAAA", Inline),
    // URLs and paths of Label Studio
    ("http://studio.example:8080/data/upload/1/a.png", Studio),
    ("http://studio.example/data/upload/1/a.png", Name),
    ("https://studio.example:8080/data/upload/1/a.png", Name),
    ("http://studio.example:8080@8.8.8.8/a.png", Public),
    ("/data/upload/1/a.png", Studio),
    ("/\\127.0.0.1/a.png", Studio),
    ("//127.0.0.1/a.png", Unsupported),
    ("\\\\127.0.0.1\\a.png", Unsupported),
    ("s3://127.0.0.1/a.png", Studio),
    // local files
    ("/data/local-files/?d=shapes.png", File),
    ("/data/local-files/?d=../../Cargo.toml", Outside),
    (
        "/data/local-files/?d=%2e%2e%2fimages%2f..%2f..%2fCargo.toml",
        Outside,
    ),
];

#[test]
fn every_notation_of_an_address_is_rejected_or_allowed_as_documented() {
    let studio = LabelStudio::new(Some("http://studio.example:8080"), None).unwrap();
    let root = crate::support::repository("examples/images");
    let context = ResolveContext {
        label_studio: &studio,
        task: Some(1),
        local_files: Some(&root),
    };
    let verdict = |value: &str| match locate(value, context) {
        Ok(Location::Inline(_)) => Inline,
        Ok(Location::File { .. }) => File,
        Ok(Location::Remote { url, .. }) if studio.is_same_origin(&url) => Studio,
        Ok(Location::Remote { url, .. }) => match check_literal(&url) {
            Err(_) => Private,
            Ok(()) if url.domain().is_some() => Name,
            Ok(()) => Public,
        },
        Err(LocationError::Outside(_)) => Outside,
        Err(_) => Unsupported,
    };
    let wrong: Vec<_> = VALUES
        .iter()
        .map(|(value, expected)| (value, verdict(value), *expected))
        .filter(|(_, verdict, expected)| verdict != expected)
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A web server that answers every request with a picture. Returns its address and its number of requests.
async fn counting_host() -> (String, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    let answer = move |_: Request| async move {
        counter.fetch_add(1, Ordering::SeqCst);
        SHAPES
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
    (address, count)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_name_that_resolves_to_a_private_address_is_rejected_unless_allowed() {
    let (address, count) = counting_host().await;
    let port = address.rsplit(':').next().unwrap();
    let url = format!("http://localhost:{port}/a.png");
    let request = prompt_request(SHAPES_CONFIG, &url, "red circle");
    let (status, body) = post(&app_with(&[]), "/predict", &request).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{body}");
    assert!(
        body["error"]
            .as_str()
            .unwrap()
            .contains("ALLOWED_IMAGE_HOSTS")
    );
    assert_eq!(count.load(Ordering::SeqCst), 0, "the host got a request");
    for allowed in ["localhost", &format!("localhost:{port}"), "*"] {
        let app = app_with(&["--allowed-image-hosts", allowed]);
        assert_eq!(
            post(&app, "/predict", &request).await.0,
            StatusCode::OK,
            "{allowed}"
        );
    }
    let app = app_with(&["--allowed-image-hosts", "127.0.0.1, localhost:1"]);
    let (status, _) = post(&app, "/predict", &request).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
}

/// A proxy resolves host names itself; literal private addresses are still rejected.
#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_gets_requests_for_host_names_and_never_for_private_addresses() {
    let (proxy, count) = counting_host().await;
    let models = model_dir("proxy");
    let server = ServerProcess::start(&[
        ("HTTP_PROXY", &format!("http://{proxy}")),
        ("NO_PROXY", ""),
        ("MODEL_DIR", models.to_str().unwrap()),
    ]);
    server.wait_until_ready().await;
    let predict = async |url: &str| {
        let request = prompt_request(SHAPES_CONFIG, url, "red circle");
        server.post("/predict", &request).await
    };
    for url in [
        "http://10.0.0.1/a.png",
        "http://169.254.169.254/",
        "http://[::1]/a.png",
    ] {
        let (status, body) = predict(url).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{body}");
        let error = body["error"].as_str().unwrap();
        assert!(error.contains("ALLOWED_IMAGE_HOSTS"), "{error}");
    }
    assert_eq!(count.load(Ordering::SeqCst), 0);
    let (status, body) = predict("http://images.example.org/a.png").await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert_ne!(body["results"][0]["result"], json!([]));
    assert_eq!(count.load(Ordering::SeqCst), 1);
}
