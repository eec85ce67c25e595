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

/// A model version of an older groundling.
const OLDER: &str = "groundling 0.0.9 demo+demo box=0.3 text=0.25 nms=0.7 prompt=\"red circle\"";

/// The model versions of a task's stored predictions, except those of the current version, which are "current".
fn versions(studio: &FakeStudio, task: u64) -> Vec<String> {
    let stored = studio.stored_predictions();
    let of_task = stored.iter().filter(|p| p["task"] == task);
    let current = format!("groundling {} ", env!("CARGO_PKG_VERSION"));
    let name = |version: &str| match version.starts_with(&current) {
        true => "current".to_owned(),
        false => version.to_owned(),
    };
    of_task
        .map(|p| p["model_version"].as_str().map_or("null".to_owned(), name))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn replace_deletes_only_groundlings_older_predictions_of_tasks_with_a_new_one() {
    // tasks 100 to 105: the image of 103 is missing, and 105 has an annotation
    let studio = FakeStudio::start(StudioOptions {
        tasks: 6,
        failing_stores: 1,
        failing_deletions: 1,
        ..StudioOptions::default()
    })
    .await;
    let others = [
        Some("groundling"),
        Some("groundling-tuned 1.0.0"),
        Some("groundling 2 of Anna"),
        Some("yolo 0.1.0"),
        Some(""),
        None,
    ];
    for task in 100..106 {
        studio.add_prediction(task, Some(OLDER));
        studio.add_prediction(task, others[task as usize - 100]);
    }
    studio.add_prediction(101, Some("groundling 12.0.1-rc.1 sam"));

    let command = ["annotate", "--project", "7", "--prompt", "red circle"];
    // without --replace nothing is deleted
    let output = run(
        &studio,
        LEGACY_TOKEN,
        &[&command[..], &["--only-unlabeled"]].concat(),
    )
    .await;
    let summary = text(&output.stdout);
    assert!(
        summary.contains("4 predicted with 8 regions") && !summary.contains("deleted"),
        "{summary}"
    );
    assert_eq!(studio.stored_predictions().len(), 13 + 4);

    // a second run deletes the older ones of the tasks that are predicted already
    let replace = [&command[..], &["--replace", "--yes"]].concat();
    let unlabeled = [&replace[..], &["--only-unlabeled"]].concat();
    let output = run(&studio, LEGACY_TOKEN, &unlabeled).await;
    let summary = text(&output.stdout);
    assert!(
        summary.contains("6 tasks: 0 predicted with 0 regions, 4 already had this prediction, 1 skipped because they have annotations, 1 failed, 5 older ones deleted"),
        "{summary}"
    );
    assert_eq!(versions(&studio, 100), ["groundling", "current"]);
    assert_eq!(
        versions(&studio, 101),
        ["groundling-tuned 1.0.0", "current"]
    );
    assert_eq!(versions(&studio, 102), ["groundling 2 of Anna", "current"]);
    // a task without a new prediction keeps the older one
    assert_eq!(versions(&studio, 103), [OLDER, "yolo 0.1.0"]);
    assert_eq!(versions(&studio, 104), ["", "current"]);
    assert_eq!(versions(&studio, 105), [OLDER, "null"]);

    // the annotated task gets a prediction, and then its older one is deleted
    let output = run(&studio, LEGACY_TOKEN, &replace).await;
    let summary = text(&output.stdout);
    assert!(
        summary.contains("1 predicted with 2 regions, 4 already had this prediction, 0 skipped because they have annotations, 1 failed, 1 older ones deleted"),
        "{summary}"
    );
    assert_eq!(versions(&studio, 105), ["null", "current"]);

    // predictions of another prompt are an older version too
    let green = [
        "annotate",
        "--project",
        "7",
        "--prompt",
        "green square",
        "--replace",
        "--yes",
    ];
    let output = run(&studio, LEGACY_TOKEN, &green).await;
    let summary = text(&output.stdout);
    assert!(
        summary.contains("5 predicted") && summary.contains(", 5 older ones deleted"),
        "{summary}"
    );
    assert_eq!(versions(&studio, 100), ["groundling", "current"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_deletion_is_a_failure_of_its_task_and_a_refusal_ends_the_run() {
    let studio = FakeStudio::start(StudioOptions {
        tasks: 2,
        ..StudioOptions::default()
    })
    .await;
    let first = studio.add_prediction(100, Some(OLDER));
    let second = studio.add_prediction(101, Some(OLDER));
    let command = [
        "annotate",
        "--project",
        "7",
        "--prompt",
        "red circle",
        "--replace",
        "--yes",
    ];

    studio.refuse_deletion(first, Some(409));
    let output = run(&studio, LEGACY_TOKEN, &command).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let (summary, error) = (text(&output.stdout), text(&output.stderr));
    assert!(
        summary.contains("2 predicted with 4 regions")
            && summary.contains("1 failed, 1 older ones deleted"),
        "{summary}"
    );
    assert!(
        summary.contains("task 100: an older prediction could not be deleted")
            && summary.contains(&format!("/api/predictions/{first}/ answered 409")),
        "{summary}"
    );
    assert!(
        error.contains("older predictions of 1 tasks could not be deleted; run"),
        "{error}"
    );
    assert_eq!(versions(&studio, 100), [OLDER, "current"]);

    // the next run deletes it
    studio.refuse_deletion(first, None);
    let output = run(&studio, LEGACY_TOKEN, &command).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(
        text(&output.stdout).contains("0 failed, 1 older ones deleted"),
        "{output:?}"
    );
    assert_eq!(
        [versions(&studio, 100), versions(&studio, 101)],
        [["current"], ["current"]]
    );

    let third = studio.add_prediction(100, Some(OLDER));
    assert!(third > second);
    studio.refuse_deletion(third, Some(403));
    let output = run(&studio, LEGACY_TOKEN, &command).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let error = text(&output.stderr);
    assert!(
        error.contains(&format!(
            "/api/predictions/{third}/ answered 403: Label Studio rejects the legacy token"
        )),
        "{error}"
    );
    assert_eq!(versions(&studio, 100), ["current", OLDER]);
}

#[tokio::test(flavor = "multi_thread")]
async fn replace_without_a_terminal_needs_yes() {
    let studio = FakeStudio::start(StudioOptions {
        tasks: 1,
        ..StudioOptions::default()
    })
    .await;
    studio.add_prediction(100, Some(OLDER));
    let output = run(
        &studio,
        LEGACY_TOKEN,
        &["annotate", "--project", "7", "--replace"],
    )
    .await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let error = text(&output.stderr);
    assert!(
        error.contains("no terminal to ask on: add --yes"),
        "{error}"
    );
    assert_eq!(versions(&studio, 100), [OLDER]);
    assert_eq!(studio.images_served(), 0);
}
