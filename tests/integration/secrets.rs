//! Tokens and passwords are never shown: a test uses all of them, and searches every response, log line, output and file
//! for them.

use std::path::Path;

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::command::command;
use crate::fake_studio::{FakeStudio, StudioOptions, personal_access_token};
use crate::server_process::{ServerProcess, model_dir};
use crate::support::{SHAPES_CONFIG, batch_request, payload, prompt_request};

const HUB: &str = "hf_hubsecretHUBSECRET";
const PASSWORD: &str = "backend-password-SECRET";
const PROJECT_PASSWORD: &str = "project-password-SECRET";
const SETUP: &str = "feedface0123456789feedface0123456789feed";
const IN_URL: &str = "url-password-SECRET";
const SIGNATURE: &str = "X-Amz-Signature=secret";

/// The texts that must appear nowhere: secrets, and encodings of them.
fn secrets() -> Vec<String> {
    let personal = personal_access_token();
    // the payload of the token; its header is the same for all tokens
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
        // part of every access token of the fake Label Studio
        "InRva2VuX3R5cGUiOiJhY2Nlc3",
    ];
    let plain = plain.map(str::to_owned);
    plain.into_iter().chain(encoded).collect()
}

/// Panics if the text contains a secret.
#[track_caller]
fn check_no_secrets(what: &str, text: &str) {
    for secret in secrets() {
        assert!(!text.contains(&secret), "{what} shows {secret}:\n{text}");
    }
}

/// Panics if a file in the folder contains a secret.
fn check_no_secrets_in_files(folder: &Path) {
    for file in crate::support::files_below(folder) {
        let bytes = std::fs::read(&file).unwrap();
        check_no_secrets(
            &file.display().to_string(),
            &String::from_utf8_lossy(&bytes),
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_in_no_response_log_output_or_file() {
    let studio = FakeStudio::start(StudioOptions {
        tasks: 12,
        accepts_legacy_tokens: false,
        ..StudioOptions::default()
    })
    .await;
    let models = model_dir("secrets");
    std::fs::create_dir_all(&models).unwrap();
    let trace = models.join("trace.json");
    let token = personal_access_token();
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
    let server = ServerProcess::start(&settings);
    server.wait_until_ready().await;
    let send = async |path: &str, body: Option<&Value>, password: &str| {
        let url = format!("{}{path}", server.url);
        let request = match body {
            Some(body) => server.client.post(url).json(body),
            None => server.client.get(url),
        };
        server.send(request.basic_auth("me", Some(password))).await
    };
    let mut responses = vec![];
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
            responses.push(text);
        }
    }
    let mut setup = payload("setup");
    setup["hostname"] = json!(studio.host);
    setup["access_token"] = json!(SETUP);
    responses.push(send("/setup", Some(&setup), PASSWORD).await.1);
    setup["hostname"] = json!(format!("http://user:{IN_URL}@nowhere.example"));
    responses.push(send("/setup", Some(&setup), PASSWORD).await.1);

    let elsewhere = &studio.other_origin;
    let mut succeeded = 0;
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
        succeeded += usize::from(status == StatusCode::OK);
        responses.push(text);
        let mut batch = batch_request(SHAPES_CONFIG, &[&image, &image]);
        batch["params"]["login"] = json!("user");
        batch["params"]["password"] = json!(PROJECT_PASSWORD);
        responses.push(send("/predict", Some(&batch), PASSWORD).await.1);
    }
    assert!(succeeded >= 3, "{responses:?}");
    studio.revoke_access_tokens();
    let again = prompt_request(SHAPES_CONFIG, "/data/upload/1/shapes-2.png", "red circle");
    let (status, text) = send("/predict", Some(&again), PASSWORD).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    responses.push(text);
    responses.push(send("/metrics", None, PASSWORD).await.1);
    assert!(studio.token_exchanges() >= 2);
    for response in &responses {
        check_no_secrets("a response", response);
    }

    server.terminate();
    let (_, log) = server.wait_for_exit();
    assert!(log.len() > 100, "{} lines", log.len());
    for line in &log {
        check_no_secrets("the log", line);
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
            check_no_secrets(&format!("{arguments:?}"), &String::from_utf8_lossy(bytes));
        }
    }
    check_no_secrets_in_files(&models);
}
