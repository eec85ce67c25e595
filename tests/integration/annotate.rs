//! `groundling annotate`: stores one prediction for each task of a project.

use std::path::Path;
use std::process::Output;

use crate::command::{groundling, text};
use crate::fake_studio::{FakeStudio, LEGACY_TOKEN, StudioOptions, personal_access_token};
use crate::support::{check_regions, scratch};

/// Runs a command with a connection to a fake Label Studio.
pub async fn run(studio: &FakeStudio, token: &str, arguments: &[&str]) -> Output {
    run_in(&scratch().join("annotate"), studio, token, arguments).await
}

/// Like [`run`], with another `MODEL_DIR`. The command runs in a thread of its own, because the fake Label Studio needs
/// the threads of the test.
pub async fn run_in(folder: &Path, studio: &FakeStudio, token: &str, arguments: &[&str]) -> Output {
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

#[tokio::test(flavor = "multi_thread")]
async fn each_task_gets_one_prediction_even_if_annotate_runs_again() {
    let studio = FakeStudio::start(StudioOptions {
        tasks: 63,
        failing_stores: 1,
        ..StudioOptions::default()
    })
    .await;
    let all = ["annotate", "--project", "7", "--prompt", "red circle"];
    let unlabeled = [&all[..], &["--only-unlabeled"]].concat();
    let output = run(&studio, &personal_access_token(), &unlabeled).await;
    // the images of 6 tasks are missing, and 6 tasks have an annotation
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
    let stored = studio.stored_predictions();
    assert_eq!(
        stored.len(),
        51,
        "a prediction that was stored although the status was 500 must not be stored again"
    );
    for prediction in &stored {
        check_regions(&prediction["result"], 640, 480, &["Red Circle"]);
    }
    // the second run predicts only the tasks without this prediction
    let output = run(&studio, LEGACY_TOKEN, &all).await;
    let summary = text(&output.stdout);
    assert!(
        summary.contains("6 predicted with 12 regions, 51 already had this prediction"),
        "{summary}"
    );
    assert_eq!(studio.stored_predictions().len(), 57);
    // with another prompt, each task gets another prediction
    let output = run(&studio, LEGACY_TOKEN, &["annotate", "--project", "7"]).await;
    let summary = text(&output.stdout);
    assert!(
        summary.contains("57 predicted with 228 regions"),
        "{summary}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn annotate_errors_name_the_cause_and_never_the_token() {
    let studio = FakeStudio::start(StudioOptions {
        accepts_legacy_tokens: false,
        ..StudioOptions::default()
    })
    .await;
    let project = ["annotate", "--project", "7"];
    for (token, arguments, expected) in [
        (LEGACY_TOKEN, &project[..], "disabled legacy tokens"),
        (
            &personal_access_token(),
            &["annotate", "--project", "8"],
            "cannot read project 8",
        ),
        (
            &personal_access_token(),
            &["annotate", "--project", "7", "--prompt", " , "],
            "has no words",
        ),
        (
            &personal_access_token(),
            &["annotate", "--project", "7", "--detector", "none-such"],
            "none-such",
        ),
    ] {
        let output = run(&studio, token, arguments).await;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let error = text(&output.stderr);
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains(token), "the error shows the token: {error}");
    }
}
