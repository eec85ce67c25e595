//! `groundling doctor`: checks the connection between Label Studio and groundling, and says how to fix problems.

use std::process::Stdio;

use crate::annotate::run;
use crate::command::{command, text};
use crate::fake_studio::{FakeStudio, LEGACY_TOKEN, StudioOptions, personal_access_token};

#[tokio::test(flavor = "multi_thread")]
async fn doctor_reports_a_working_setup_without_showing_the_token() {
    let studio = FakeStudio::start(StudioOptions {
        tasks: 1,
        ..StudioOptions::default()
    })
    .await;
    let project = ["doctor", "--project", "7"];
    let output = run(&studio, &personal_access_token(), &project).await;
    let report = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{report}");
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
        assert!(report.contains(expected), "{report}");
    }
    assert!(!report.contains(&personal_access_token()));
    assert!(studio.stored_predictions().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_names_the_setting_that_is_wrong() {
    let mut studio = FakeStudio::start(StudioOptions::default()).await;
    let project = ["doctor", "--project", "7"];
    let output = run(&studio, "wrong", &project).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains(
        "FAIL  /api/current-user/whoami answered 401: Label Studio rejects the legacy token"
    ));
    studio.host = "http://127.0.0.1:1".to_owned();
    let output = run(&studio, LEGACY_TOKEN, &project).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("(LABEL_STUDIO_HOST)"));
}

/// A panic would end the process with 101.
#[test]
fn a_closed_output_pipe_does_not_change_the_exit_code() {
    let mut child = command(&["doctor", "--label-studio-host", "http://127.0.0.1:1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(1));
}
