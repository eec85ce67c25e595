//! Downloads from the hub: into the cache layout of the hub's own tools, resumed, checked, and with errors that name
//! the cause.

use std::fs;
use std::path::Path;
use std::time::Duration;

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::command::{command, text};
use crate::fake_hub::{COMMIT, FakeHub, HubOptions, ID, WEIGHTS, sha256};
use crate::support::{app_with, get_json, repository};

const PREDICT: [&str; 6] = [
    "predict",
    "examples/images/shapes.png",
    "--prompt",
    "star",
    "--segmenter",
    ID,
];

#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_downloaded_once_into_the_cache_of_the_hubs_tools() {
    let hub = FakeHub::start(HubOptions::default()).await;
    let output = hub.run(&PREDICT).await;
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(
        report["results"][0]["detections"][0]["mask"].is_object(),
        "{report}"
    );
    let log = text(&output.stderr);
    assert!(log.contains("downloading model.safetensors"), "{log}");

    let reference = fs::read_to_string(hub.cached_repository().join("refs/main")).unwrap();
    assert_eq!(reference, COMMIT);
    let link = fs::read_link(hub.snapshot().join(WEIGHTS)).unwrap();
    let published = repository("models/demo/segmenter/model.safetensors");
    let etag = sha256(&fs::read(published).unwrap());
    assert_eq!(link, Path::new("../../blobs").join(&etag));

    // the cached model needs no network
    for arguments in [&PREDICT[..], &["download", ID]] {
        let mut offline = command(arguments);
        offline
            .env("HF_HOME", hub.home.path())
            .env("HF_HUB_OFFLINE", "1");
        let output = offline.output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    assert_eq!(hub.download_starts(), [0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_download_is_resumed() {
    // by the same command
    let hub = FakeHub::start(HubOptions {
        breaks: vec![1_000_000, 0, 500_000],
        ..HubOptions::default()
    })
    .await;
    hub.run_successfully(&["download", ID]).await;
    assert_eq!(hub.download_starts(), [0, 1_000_000, 1_500_000]);

    // by the next command, if all attempts of the first one failed
    let hub = FakeHub::start(HubOptions {
        breaks: vec![1_000_000, 0, 0, 0, 0],
        ..HubOptions::default()
    })
    .await;
    let error = hub.failure(&["download", ID]).await;
    assert!(
        error.contains(WEIGHTS) && error.contains(&hub.endpoint) && error.contains("503"),
        "{error}"
    );
    hub.run_successfully(&["download", ID]).await;
    assert_eq!(hub.download_starts(), [0, 1_000_000]);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_commands_at_the_same_time_share_one_download() {
    let hub = FakeHub::start(HubOptions {
        delay: Duration::from_millis(700),
        ..HubOptions::default()
    })
    .await;
    tokio::join!(
        hub.run_successfully(&PREDICT),
        hub.run_successfully(&PREDICT)
    );
    assert_eq!(hub.download_starts(), [0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_with_a_wrong_checksum_is_removed() {
    let wrong = "f".repeat(64);
    let hub = FakeHub::start(HubOptions {
        etag: Some(wrong.clone()),
        ..HubOptions::default()
    })
    .await;
    let error = hub.failure(&PREDICT).await;
    assert!(
        error.contains("checksum") && error.contains(&wrong) && error.contains(".json"),
        "{error}"
    );
    let blobs = fs::read_dir(hub.cached_repository().join("blobs")).unwrap();
    assert_eq!(blobs.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cached_file_that_was_damaged_is_downloaded_again() {
    let hub = FakeHub::start(HubOptions::default()).await;
    hub.run_successfully(&["download", ID]).await;
    let weights = hub.snapshot().join(WEIGHTS);
    let blob = weights.canonicalize().unwrap();
    let mut bytes = fs::read(&blob).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    // truncated, and with a flipped bit
    for damaged in [&bytes[..last], &bytes] {
        fs::write(&blob, damaged).unwrap();
        let mut offline = command(&PREDICT);
        offline
            .env("HF_HOME", hub.home.path())
            .env("HF_HUB_OFFLINE", "1");
        let output = offline.output().unwrap();
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(
            error.contains(WEIGHTS) && error.contains("is damaged"),
            "{error}"
        );
        hub.run_successfully(&PREDICT).await;
        assert_eq!(
            sha256(&fs::read(&blob).unwrap()),
            blob.file_name().unwrap().to_str().unwrap()
        );
    }
    fs::write(&blob, &bytes).unwrap();
    hub.run_successfully(&["download", ID]).await;
    // other tools omit files that they do not need
    fs::remove_file(hub.snapshot().join("preprocessor_config.json")).unwrap();
    hub.run_successfully(&PREDICT).await;
    assert_eq!(hub.download_starts(), [0; 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_the_hub_sends_cannot_lead_out_of_the_cache() {
    let outside = tempfile::tempdir().unwrap();
    let path = outside.path().join("escaped").display().to_string();
    let hub = FakeHub::start(HubOptions {
        etag: Some(path),
        ..HubOptions::default()
    })
    .await;
    let error = hub.failure(&["download", ID]).await;
    assert!(error.contains("no usable etag"), "{error}");
    let hub = FakeHub::start(HubOptions {
        commit: Some("../../../escaped"),
        ..HubOptions::default()
    })
    .await;
    let error = hub.failure(&["download", ID]).await;
    assert!(error.contains("no commit"), "{error}");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hubs_token_is_not_sent_to_another_origin() {
    let hub = FakeHub::start(HubOptions {
        token: Some("hf_secret"),
        redirects_weights: true,
        breaks: vec![1_000_000],
        ..HubOptions::default()
    })
    .await;
    hub.run_successfully(&["download", ID, "--hf-token", "hf_secret"])
        .await;
    assert_eq!(hub.download_starts(), [0, 1_000_000]);
    let tokens = hub.tokens();
    assert!(
        tokens.len() > 4 && tokens.iter().all(|(is_hub, _)| *is_hub),
        "{tokens:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_without_access_names_the_token_setting() {
    let hub = FakeHub::start(HubOptions {
        token: Some("hf_secret"),
        ..HubOptions::default()
    })
    .await;
    let error = hub.failure(&["download", ID]).await;
    assert!(
        error.contains("401") && error.contains("HF_TOKEN"),
        "{error}"
    );
    let wrong = ["download", ID, "--hf-token", "hf_other"];
    let error = hub.failure(&wrong).await;
    assert!(
        error.contains("401") && !error.contains("hf_other"),
        "{error}"
    );
    hub.run_successfully(&["download", ID, "--hf-token", "hf_secret"])
        .await;
    // the token file of the hub's own tools is used too
    let home = hub.home.path().to_owned();
    fs::remove_dir_all(home.join("hub")).unwrap();
    fs::write(home.join("token"), "hf_secret\n").unwrap();
    hub.run_successfully(&["download", ID]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_model_is_an_error_that_names_it() {
    let hub = FakeHub::start(HubOptions::default()).await;
    let error = hub.failure(&["download", "someone/nothing"]).await;
    assert!(
        error.contains("someone/nothing") && error.contains(&hub.endpoint),
        "{error}"
    );
    // the known names are listed
    let error = hub.failure(&["download", "nothing"]).await;
    assert!(
        error.contains("\"nothing\"") && error.contains("grounding-dino-tiny"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_an_error_that_names_the_file_and_the_setting() {
    let hub = FakeHub::start(HubOptions::default()).await;
    let blobs = hub.cached_repository().join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    // every write to this device fails as on a full disk
    let weights = fs::read(repository("models/demo/segmenter/model.safetensors")).unwrap();
    let part = blobs.join(format!("{}.incomplete", sha256(&weights)));
    std::os::unix::fs::symlink("/dev/full", part).unwrap();
    let error = hub.failure(&["download", ID]).await;
    assert!(
        error.contains("model.safetensors")
            && error.contains("No space left")
            && error.contains("HF_HOME"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_hub_commands_fail_and_the_server_says_why_it_is_not_ready() {
    let output = command(&PREDICT).output().unwrap();
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(
        error.contains("http://127.0.0.1:1") && error.contains(ID),
        "{error}"
    );
    let offline = [&PREDICT[..], &["--hf-hub-offline"]].concat();
    let output = command(&offline).output().unwrap();
    let error = text(&output.stderr);
    assert!(
        error.contains("HF_HUB_OFFLINE") && error.contains(ID),
        "{error}"
    );

    let app = app_with(&["--segmenter", ID, "--hf-endpoint", "http://127.0.0.1:1"]);
    let reason = loop {
        let (status, body) = get_json(&app, "/ready").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(body["ready"], json!(false));
        let reason = body["reason"].as_str().unwrap().to_owned();
        if reason.contains("could not be loaded") {
            break reason;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(reason.contains("http://127.0.0.1:1"), "{reason}");
    let (status, _) = get_json(&app, "/health").await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_downloaded_folder_can_be_used_on_a_machine_without_network() {
    let hub = FakeHub::start(HubOptions::default()).await;
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().to_str().unwrap();
    hub.run_successfully(&["download", ID, "--output", output])
        .await;
    let weights = folder.path().join(ID).join("model.safetensors");
    assert!(!weights.is_symlink() && weights.is_file());
    let mut offline = command(&PREDICT);
    offline.env("HF_HUB_OFFLINE", "1").env("MODEL_DIR", output);
    let output = offline.output().unwrap();
    assert!(output.status.success(), "{output:?}");
}
