//! `groundling annotate` and `groundling doctor` as a user runs them.

use std::path::Path;
use std::process::Output;

use crate::cli::groundling;
use crate::studio::{LEGACY, Setup, Studio, personal};
use crate::support::{check_regions, scratch};

/// Runs a command against a Label Studio, beside the threads that serve it.
async fn run(studio: &Studio, token: &str, arguments: &[&str]) -> Output {
    run_in(&scratch().join("annotating"), studio, token, arguments).await
}

/// The same with another `MODEL_DIR`.
pub async fn run_in(folder: &Path, studio: &Studio, token: &str, arguments: &[&str]) -> Output {
    let connection = [
        "--label-studio-host",
        &studio.host,
        "--label-studio-access-token",
        token,
        "--model-dir",
        folder.to_str().unwrap(),
    ];
    let arguments: Vec<String> = arguments
        .iter()
        .chain(&connection)
        .map(|argument| (*argument).to_owned())
        .collect();
    let command = move || {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        groundling(&arguments)
    };
    tokio::task::spawn_blocking(command).await.unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_is_annotated_once() {
    let studio = Studio::start(Setup {
        tasks: 63,
        stumbles: 1,
        ..Setup::default()
    })
    .await;
    let all = ["annotate", "--project", "7", "--prompt", "red circle"];
    let unlabeled = [&all[..], &["--only-unlabeled"]].concat();
    let output = run(&studio, &personal(), &unlabeled).await;
    // every tenth task has no image, every tenth an annotation
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let summary = text(&output.stdout);
    assert!(
        summary.contains("63 tasks: 51 predicted with 102 regions, 0 already had this prediction, 6 skipped because they have annotations, 6 failed"),
        "{summary}"
    );
    assert!(
        summary.contains("task 103: ") && summary.contains("missing.png answered 500"),
        "{summary}"
    );
    let stored = studio.stored();
    assert_eq!(
        stored.len(),
        51,
        "one that was stored with an error is not stored twice"
    );
    for prediction in &stored {
        check_regions(&prediction["result"], 640, 480, &["Red Circle"]);
    }
    // on from where it stopped
    let output = run(&studio, LEGACY, &all).await;
    let summary = text(&output.stdout);
    assert!(
        summary.contains("6 predicted with 12 regions, 51 already had this prediction"),
        "{summary}"
    );
    assert_eq!(studio.stored().len(), 57);
    // another prompt is another prediction
    let output = run(&studio, LEGACY, &["annotate", "--project", "7"]).await;
    let summary = text(&output.stdout);
    assert!(
        summary.contains("57 predicted with 228 regions"),
        "{summary}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_annotate_from_working_is_named() {
    let studio = Studio::start(Setup {
        has_legacy: false,
        ..Setup::default()
    })
    .await;
    let project = ["annotate", "--project", "7"];
    for (token, arguments, expected) in [
        (LEGACY, &project[..], "disabled legacy tokens"),
        (
            &personal(),
            &["annotate", "--project", "8"],
            "cannot read project 8",
        ),
        (
            &personal(),
            &["annotate", "--project", "7", "--prompt", " , "],
            "has no words",
        ),
        (
            &personal(),
            &["annotate", "--project", "7", "--detector", "none-such"],
            "none-such",
        ),
    ] {
        let output = run(&studio, token, arguments).await;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let error = text(&output.stderr);
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains(token));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_tells_what_to_change() {
    let studio = Studio::start(Setup {
        tasks: 1,
        ..Setup::default()
    })
    .await;
    let project = ["doctor", "--project", "7"];
    let output = run(&studio, &personal(), &project).await;
    let told = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{told}");
    for expected in [
        "Label Studio 1.23.2",
        "a personal access token of user@example.com",
        "may store predictions",
        "rectangle \"label\", brush \"label2\"; labels: Red Circle, Blue Star",
        "task 100 can be fetched: 640x480",
        "no backend connected",
        "on cpu",
        "of memory (CACHE_BYTES)",
        "0 image embeddings are stored in 0 KiB of 20480 MiB (WARM_BYTES)",
        "ML_BLOCK_LOCAL_IP=false",
        "no problems found",
    ] {
        assert!(told.contains(expected), "{told}");
    }
    assert!(!told.contains(&personal()));
    assert!(studio.stored().is_empty());
    let output = run(&studio, "wrong", &project).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains(
        "FAIL  /api/current-user/whoami answered 401: Label Studio rejects the legacy token"
    ));
    let mut nobody = studio;
    nobody.host = "http://127.0.0.1:1".to_owned();
    let output = run(&nobody, LEGACY, &project).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("(LABEL_STUDIO_HOST)"));
}
