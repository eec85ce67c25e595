//! Which addresses images are fetched from: every spelling of an address that should not be asked, and those that may.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use groundling::label_studio::LabelStudio;
use groundling::media::guard::check_literal;
use groundling::media::{Location, LocationError, ResolveContext, locate};
use serde_json::json;

use crate::process::{Process, folder};
use crate::support::{SHAPES, SHAPES_CONFIG, app_with, post, prompt_request};

/// What becomes of a value.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Verdict {
    /// A private address: refused before anything is asked.
    Private,
    /// A public address: it is asked.
    Public,
    /// Label Studio is asked, with the token.
    Studio,
    /// No URL that groundling follows.
    NoUrl,
    /// It is no address: a name, which is looked at when it is resolved.
    Name,
    /// A file of the folder for local files.
    File,
    /// A file outside of it.
    Outside,
    /// The data is in the task.
    Inline,
}

use Verdict::{File, Inline, Name, NoUrl, Outside, Private, Public, Studio};

const FORMS: [(&str, Verdict); 124] = [
    // IPv4, in every notation that a URL may have
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
    // what else a URL may have around its host
    ("http://user:password@127.0.0.1/a.png", Private),
    ("http://8.8.8.8@127.0.0.1/a.png", Private),
    ("http://8.8.8.8%40127.0.0.1/a.png", NoUrl),
    ("http://127.0.0.1#@8.8.8.8/a.png", Private),
    ("http://127.0.0.1?@8.8.8.8/a.png", Private),
    ("http://127.0.0.1\\@8.8.8.8/a.png", Private),
    ("http://127.0.0.1%2f@8.8.8.8/a.png", Public),
    ("http:///127.0.0.1/a.png", Private),
    ("http:////127.0.0.1/a.png", Private),
    ("http://\\127.0.0.1/a.png", Private),
    ("http://127.0\n.0.1/a.png", Private),
    ("http://127.0\t.0.1/a.png", Private),
    ("http://127.0.0.1:80:80/a.png", NoUrl),
    ("http://127.0.0.1:99999/a.png", NoUrl),
    ("http://256.256.256.256/a.png", NoUrl),
    ("http://0x100000000/a.png", NoUrl),
    ("http:127.0.0.1/a.png", NoUrl),
    ("http:/127.0.0.1/a.png", NoUrl),
    // networks that are nobody's on the internet
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
    // IPv6, and IPv4 inside of it
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
    ("http://[fe80::1%25eth0]/a.png", NoUrl),
    ("http://[fec0::1]/a.png", Private),
    ("http://[ff02::1]/a.png", Private),
    ("http://[::1/a.png", NoUrl),
    ("http://::1/a.png", NoUrl),
    // public ones, as they are usual and as they are not
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
    // names
    ("http://localhost/a.png", Name),
    ("http://localhost./a.png", Name),
    ("http://LOCALHOST/a.png", Name),
    ("http://images.example.org/a.png", Name),
    ("http://bücher.example/a.png", Name),
    ("http://127.0.0.1.example.org/a.png", Name),
    // schemes
    ("ftp://127.0.0.1/a.png", NoUrl),
    ("file:///etc/passwd", NoUrl),
    ("gopher://127.0.0.1:6379/_INFO", NoUrl),
    ("dict://127.0.0.1:11211/stats", NoUrl),
    ("unix:/var/run/docker.sock", NoUrl),
    ("javascript:alert(1)", NoUrl),
    ("DATA:image/png;base64,AAAA", Inline),
    // Label Studio's own
    ("http://studio.example:8080/data/upload/1/a.png", Studio),
    ("http://studio.example/data/upload/1/a.png", Name),
    ("https://studio.example:8080/data/upload/1/a.png", Name),
    ("http://studio.example:8080@8.8.8.8/a.png", Public),
    ("/data/upload/1/a.png", Studio),
    ("/\\127.0.0.1/a.png", Studio),
    ("//127.0.0.1/a.png", NoUrl),
    ("\\\\127.0.0.1\\a.png", NoUrl),
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
fn every_form_of_address_is_refused_or_allowed_as_documented() {
    let studio = LabelStudio::new(Some("http://studio.example:8080"), None).unwrap();
    let root = crate::support::repository("examples/images");
    let around = ResolveContext {
        label_studio: &studio,
        task: Some(1),
        local_files: Some(&root),
    };
    let verdict = |value: &str| match locate(value, around) {
        Ok(Location::Inline(_)) => Inline,
        Ok(Location::File { .. }) => File,
        Ok(Location::Remote { url, .. }) if studio.is_same_origin(&url) => Studio,
        Ok(Location::Remote { url, .. }) => match check_literal(&url) {
            Err(_) => Private,
            Ok(()) if url.domain().is_some() => Name,
            Ok(()) => Public,
        },
        Err(LocationError::Outside(_)) => Outside,
        Err(_) => NoUrl,
    };
    let wrong: Vec<_> = FORMS
        .iter()
        .map(|(value, expected)| (value, verdict(value), *expected))
        .filter(|(_, verdict, expected)| verdict != expected)
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A host that counts what it is asked, and has a picture.
async fn host() -> (String, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let answer = move |_: Request| async move {
        counted.fetch_add(1, Ordering::SeqCst);
        SHAPES
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
    (address, count)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_as_private_as_what_it_resolves_to() {
    let (address, count) = host().await;
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
    assert_eq!(count.load(Ordering::SeqCst), 0, "it was asked");
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

/// Through a proxy it is the proxy that resolves names; addresses that are written out are refused all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_is_asked_for_names_and_never_for_private_addresses() {
    let (proxy, count) = host().await;
    let models = folder("proxy");
    let server = Process::start(&[
        ("HTTP_PROXY", &format!("http://{proxy}")),
        ("NO_PROXY", ""),
        ("MODEL_DIR", models.to_str().unwrap()),
    ]);
    server.ready().await;
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
    }
    assert_eq!(count.load(Ordering::SeqCst), 0);
    let (status, body) = predict("http://images.example.org/a.png").await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert_ne!(body["results"][0]["result"], json!([]));
    assert_eq!(count.load(Ordering::SeqCst), 1);
}
