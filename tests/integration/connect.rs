//! `groundling connect`: creates or finds a project, and connects it to groundling.

use std::process::Output;

use groundling::labeling::LabelingConfig;

use crate::command::{command, text};
use crate::fake_studio::{FakeStudio, LEGACY_TOKEN, StudioOptions};
use crate::server_process::{ServerProcess, model_dir};

/// Runs `groundling connect` with a Label Studio and a backend.
async fn connect(studio: &FakeStudio, url: &str, arguments: &[&str]) -> Output {
    let mut connect = command(&[&["connect"], arguments].concat());
    connect
        .env("LABEL_STUDIO_HOST", &studio.host)
        .env("LABEL_STUDIO_ACCESS_TOKEN", LEGACY_TOKEN)
        .env("GROUNDLING_URL", url);
    tokio::task::spawn_blocking(move || connect.output().unwrap())
        .await
        .unwrap()
}

/// A server for this Label Studio.
fn server(studio: &FakeStudio, name: &str, settings: &[(&str, &str)]) -> ServerProcess {
    let folder = model_dir(name);
    let connection = [
        ("MODEL_DIR", folder.to_str().unwrap()),
        ("LABEL_STUDIO_HOST", &studio.host),
        ("LABEL_STUDIO_ACCESS_TOKEN", LEGACY_TOKEN),
    ];
    ServerProcess::start(&[&connection, settings].concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_creates_a_project_with_pictures_and_can_be_repeated() {
    let studio = FakeStudio::start(StudioOptions::default()).await;
    let login = [("BASIC_AUTH_USER", "me"), ("BASIC_AUTH_PASS", "secret")];
    let server = server(&studio, "connect", &login);
    let arguments = [
        "--title",
        "shapes & more",
        "--demo",
        "--basic-auth-user",
        "me",
        "--basic-auth-pass",
        "secret",
    ];
    for expected in [
        &[
            "as user@example.com",
            "project 7 \"shapes & more\" was created",
            "24 images were uploaded",
            "is connected, with interactive preannotations",
            "a prediction for task 100 has",
        ],
        &[
            "as user@example.com",
            "project 7 \"shapes & more\" exists",
            "no image was uploaded, because the project has 24 tasks",
            "was connected already",
            "a prediction for task 100 has",
        ],
    ] {
        let output = connect(&studio, &server.url, &arguments).await;
        let report = text(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        for line in expected {
            assert!(report.contains(line), "{line:?} is not in {report}");
        }
        assert!(!report.contains("has 0 regions"), "{report}");
    }
    let backends = studio.backends();
    assert_eq!(backends.len(), 1, "{backends:?}");
    assert_eq!(backends[0]["is_interactive"], true);
    let version = backends[0]["model_version"].as_str().unwrap();
    assert!(version.starts_with("groundling "), "{version}");
    assert_eq!(studio.tasks().len(), 24);
    let config = LabelingConfig::parse(&studio.changed_label_config().unwrap()).unwrap();
    let labels = config.labels(config.image().unwrap());
    assert!(labels.iter().any(|label| label.name() == "star"));
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_keeps_the_config_of_an_existing_project_unless_another_is_given() {
    let studio = FakeStudio::start(StudioOptions {
        tasks: 1,
        ..StudioOptions::default()
    })
    .await;
    let server = server(&studio, "connect-existing", &[]);
    let output = connect(&studio, &server.url, &["--project", "7"]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(studio.changed_label_config(), None);
    let file = "examples/label-studio/labeling_config.xml";
    let arguments = ["--project", "7", "--labeling-config", file];
    let output = connect(&studio, &server.url, &arguments).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let config = studio.changed_label_config().unwrap();
    assert!(config.contains("Bok Choi"), "{config}");
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_goes_on_if_only_the_webhook_is_refused() {
    let studio = FakeStudio::start(StudioOptions {
        tasks: 1,
        blocks_webhooks: true,
        ..StudioOptions::default()
    })
    .await;
    let server = server(&studio, "connect-webhook", &[]);
    let output = connect(&studio, &server.url, &["--project", "7"]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report = text(&output.stdout);
    assert!(
        report.contains("refused a webhook") && report.contains("is connected"),
        "{report}"
    );
    assert_eq!(studio.backends().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_fails_if_the_prediction_fails() {
    let studio = FakeStudio::start(StudioOptions {
        tasks: 1,
        ..StudioOptions::default()
    })
    .await;
    let wrong = [("LABEL_STUDIO_ACCESS_TOKEN", "wrong")];
    let server = server(&studio, "connect-wrong-token", &wrong);
    let output = connect(&studio, &server.url, &["--project", "7"]).await;
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let expected = "the prediction for task 100 failed";
    assert!(error.contains(expected) && error.contains("401"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_says_what_is_wrong_and_what_would_be_right() {
    let unreachable = "http://127.0.0.1:1";
    let fails = async |studio: &FakeStudio, arguments: &[&str], expected: &[&str]| {
        let output = connect(studio, unreachable, &[arguments, &["--wait", "0"]].concat()).await;
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        for part in expected {
            assert!(error.contains(part), "{part:?} is not in {error}");
        }
    };
    let blocking = FakeStudio::start(StudioOptions {
        blocks_private_addresses: true,
        ..StudioOptions::default()
    })
    .await;
    fails(&blocking, &[], &["ML_BLOCK_LOCAL_IP=false"]).await;
    let mut studio = FakeStudio::start(StudioOptions::default()).await;
    let expected = ["Can't connect to ML backend", "--url"];
    fails(&studio, &["--project", "7"], &expected).await;
    fails(&studio, &["--project", "8"], &["project 8", "Not found"]).await;
    fails(&studio, &["--labels", "dog,,cat"], &["empty label"]).await;
    let missing = ["--labeling-config", "missing.xml"];
    fails(&studio, &missing, &["missing.xml"]).await;
    let half = ["--project", "7", "--basic-auth-user", "me"];
    fails(&studio, &half, &["must both be set"]).await;
    studio.host = unreachable.to_owned();
    fails(&studio, &[], &["(LABEL_STUDIO_HOST)"]).await;
}

#[test]
fn a_secret_can_be_in_a_file_that_a_variable_names() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "token-of-the-file\n").unwrap();
    let run = |file: &str| {
        let output = command(&["doctor", "--help"])
            .env("LABEL_STUDIO_ACCESS_TOKEN_FILE", file)
            .output()
            .unwrap();
        (
            output.status.code(),
            text(&output.stdout) + &text(&output.stderr),
        )
    };
    let (status, help) = run(token.to_str().unwrap());
    assert_eq!(status, Some(0));
    assert!(!help.contains("token-of-the-file"), "{help}");
    let (status, error) = run("missing");
    assert_ne!(status, Some(0));
    let expected = "LABEL_STUDIO_ACCESS_TOKEN_FILE: cannot read missing";
    assert!(error.contains(expected), "{error}");
    // the token reaches Label Studio: the address is wrong, but there is a token
    let output = command(&[
        "connect",
        "--label-studio-host",
        "http://127.0.0.1:1",
        "--wait",
        "0",
    ])
    .env("LABEL_STUDIO_ACCESS_TOKEN_FILE", &token)
    // compose files set variables this way
    .env("LABEL_STUDIO_ACCESS_TOKEN", "")
    .output()
    .unwrap();
    assert!(text(&output.stderr).contains("(LABEL_STUDIO_HOST)"));
}

#[tokio::test(flavor = "multi_thread")]
async fn health_tells_whether_the_models_are_loaded() {
    let studio = FakeStudio::start(StudioOptions::default()).await;
    let server = server(
        &studio,
        "health",
        &[("BASIC_AUTH_USER", "me"), ("BASIC_AUTH_PASS", "x")],
    );
    server.wait_until_ready().await;
    let port = server.url.rsplit(':').next().unwrap().to_owned();
    let run = async |port: String, bound: &'static str| {
        let run = move || {
            let arguments = ["health", "--port", &port, "--bind-address", bound];
            command(&arguments).output().unwrap()
        };
        tokio::task::spawn_blocking(run).await.unwrap()
    };
    for bound in ["127.0.0.1", "0.0.0.0"] {
        let output = run(port.clone(), bound).await;
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(text(&output.stdout).contains("\"ready\":true"));
    }
    let output = run("1".to_owned(), "127.0.0.1").await;
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no server answers at http://127.0.0.1:1/ready"));
}
