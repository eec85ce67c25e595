//! Tokens and passwords are used, and seen nowhere: a run through everything, and a search in all that it left.

use std::path::Path;

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::cli::command;
use crate::process::{Process, folder};
use crate::studio::{Setup, Studio, personal};
use crate::support::{SHAPES_CONFIG, batch_request, payload, prompt_request};

const HUB: &str = "hf_hubsecretHUBSECRET";
const PASSWORD: &str = "backend-password-SECRET";
const PROJECT_PASSWORD: &str = "project-password-SECRET";
const SETUP: &str = "feedface0123456789feedface0123456789feed";
const IN_URL: &str = "url-password-SECRET";
const SIGNATURE: &str = "X-Amz-Signature=secret";

/// Everything that must not be seen.
fn secrets() -> Vec<String> {
    let personal = personal();
    // the part of a token that nobody else has: its payload
    let payload = personal.split('.').nth(1).unwrap().to_owned();
    let basic = |user: &str, password: &str| {
        use base64::Engine;
        base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"))
    };
    let encoded = [
        basic("me", PASSWORD),
        basic("user", PROJECT_PASSWORD),
        basic("me", "wrong-password-SECRET"),
    ];
    let plain = [
        HUB,
        PASSWORD,
        PROJECT_PASSWORD,
        SETUP,
        IN_URL,
        SIGNATURE,
        "wrong-password-SECRET",
        &payload,
        &personal,
        // of the short-lived tokens that the studio gives out
        "InRva2VuX3R5cGUiOiJhY2Nlc3",
    ];
    let plain = plain.map(str::to_owned);
    plain.into_iter().chain(encoded).collect()
}

#[track_caller]
fn search(what: &str, text: &str) {
    for secret in secrets() {
        assert!(!text.contains(&secret), "{what} shows {secret}:\n{text}");
    }
}

/// Every file below a folder.
fn search_files(folder: &Path) {
    for file in crate::support::sources(folder) {
        let bytes = std::fs::read(&file).unwrap();
        search(
            &file.display().to_string(),
            &String::from_utf8_lossy(&bytes),
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_seen_nowhere() {
    let studio = Studio::start(Setup {
        tasks: 12,
        has_legacy: false,
        ..Setup::default()
    })
    .await;
    let models = folder("secrets");
    std::fs::create_dir_all(&models).unwrap();
    let trace = models.join("trace.json");
    let token = personal();
    let settings = [
        ("LABEL_STUDIO_HOST", studio.host.as_str()),
        ("LABEL_STUDIO_ACCESS_TOKEN", &token),
        ("HF_TOKEN", HUB),
        ("BASIC_AUTH_USER", "me"),
        ("BASIC_AUTH_PASS", PASSWORD),
        ("MODEL_DIR", models.to_str().unwrap()),
        ("TRACE_FILE", trace.to_str().unwrap()),
        ("ALLOWED_IMAGE_HOSTS", "localhost"),
        ("IMAGE_TIMEOUT_S", "1"),
        ("LOG_LEVEL", "trace"),
    ];
    let server = Process::start(&settings);
    server.ready().await;
    let send = async |path: &str, body: Option<&Value>, password: &str| {
        let url = format!("{}{path}", server.url);
        let request = match body {
            Some(body) => server.client.post(url).json(body),
            None => server.client.get(url),
        };
        server.send(request.basic_auth("me", Some(password))).await
    };
    let mut answers = vec![];
    for password in [PASSWORD, "wrong-password-SECRET"] {
        for path in [
            "/health",
            "/metrics",
            "/versions",
            "/api-docs",
            "/ready",
            "/no",
        ] {
            let (status, text) = send(path, None, password).await;
            assert_eq!(
                status == StatusCode::UNAUTHORIZED,
                password != PASSWORD && !["/ready", "/no"].contains(&path),
                "{path} {status}"
            );
            answers.push(text);
        }
    }
    let mut setup = payload("setup");
    setup["hostname"] = json!(studio.host);
    setup["access_token"] = json!(SETUP);
    answers.push(send("/setup", Some(&setup), PASSWORD).await.1);
    setup["hostname"] = json!(format!("http://user:{IN_URL}@nowhere.example"));
    answers.push(send("/setup", Some(&setup), PASSWORD).await.1);

    let elsewhere = &studio.elsewhere;
    let mut was_answered = 0;
    for image in [
        "/data/upload/1/shapes.png".to_owned(),
        "/data/upload/1/missing.png".to_owned(),
        "/data/upload/1/moved.png".to_owned(),
        "s3://bucket/a b.png".to_owned(),
        format!("{elsewhere}/open.png?{SIGNATURE}"),
        format!("{elsewhere}/text.png?{SIGNATURE}"),
        format!("{elsewhere}/nowhere.png?{SIGNATURE}"),
        format!("{elsewhere}/loop.png?{SIGNATURE}"),
        format!("{elsewhere}/slow.png?{SIGNATURE}"),
        format!("http://user:{IN_URL}@127.0.0.1:1/a.png?{SIGNATURE}"),
        format!("http://user:{IN_URL}@localhost:1/a.png?{SIGNATURE}"),
        format!("https://user:{IN_URL}@name.invalid/a.png?{SIGNATURE}"),
    ] {
        let mut request = prompt_request(SHAPES_CONFIG, &image, "red circle");
        request["params"]["login"] = json!("user");
        request["params"]["password"] = json!(PROJECT_PASSWORD);
        let (status, text) = send("/predict", Some(&request), PASSWORD).await;
        was_answered += usize::from(status == StatusCode::OK);
        answers.push(text);
        let mut batch = batch_request(SHAPES_CONFIG, &[&image, &image]);
        batch["params"]["login"] = json!("user");
        batch["params"]["password"] = json!(PROJECT_PASSWORD);
        answers.push(send("/predict", Some(&batch), PASSWORD).await.1);
    }
    assert!(was_answered >= 3, "{answers:?}");
    studio.revoke_access();
    let again = prompt_request(SHAPES_CONFIG, "/data/upload/1/shapes-2.png", "red circle");
    let (status, text) = send("/predict", Some(&again), PASSWORD).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    answers.push(text);
    answers.push(send("/metrics", None, PASSWORD).await.1);
    assert!(studio.exchanges() >= 2);
    for answer in &answers {
        search("an answer", answer);
    }

    server.terminate();
    let (_, log) = server.ended();
    assert!(log.len() > 100, "{} lines", log.len());
    for line in &log {
        search("the log", line);
    }

    for arguments in [
        &["doctor"][..],
        &["doctor", "--project", "7"],
        &["annotate", "--project", "7", "--prompt", "red circle"],
        &["warm", "--project", "7"],
        &["download", "no-such-owner/no-such-model"],
        &["models"],
        &["--help"],
        &["serve", "--help"],
        &["serve", "--port", "many"],
    ] {
        let mut command = command(arguments);
        command.envs(settings).env("LOG_LEVEL", "debug");
        let output = tokio::task::spawn_blocking(move || command.output().unwrap());
        let output = output.await.unwrap();
        for bytes in [&output.stdout, &output.stderr] {
            search(&format!("{arguments:?}"), &String::from_utf8_lossy(bytes));
        }
    }
    search_files(&models);
}
