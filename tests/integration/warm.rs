//! `groundling warm`: image embeddings on disk, which a server reads instead of computing them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use axum::Router;
use serde_json::{Value, json};

use crate::annotate::run_in;
use crate::brush_rle_decoder;
use crate::caches::cache_counts;
use crate::command::text;
use crate::fake_studio::{FakeStudio, StudioOptions, personal_access_token};
use crate::support::{SHAPES_CONFIG, post, prompt_request, regions, scratch};

/// The request of a smart rectangle around the blue star in an upload.
fn click(upload: &str) -> Value {
    let url = format!("/data/upload/7/{upload}");
    let mut request = prompt_request(SHAPES_CONFIG, &url, "x");
    let rectangle = json!({"type": "rectanglelabels", "to_name": "image", "from_name": "label", "original_width": 640,
        "value": {"x": 64.7, "y": 59.4, "width": 28.0, "height": 38.0, "rotation": 0, "rectanglelabels": ["Blue Star"]}});
    request["params"]["context"]["result"] = json!([rectangle]);
    request
}

/// The pixels of the mask of a click.
async fn mask(app: &Router, upload: &str) -> Vec<bool> {
    let answer = post(app, "/predict", &click(upload)).await;
    let found = regions(&answer).as_array().unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    let rle: Vec<u8> = serde_json::from_value(found[0]["value"]["rle"].clone()).unwrap();
    let channels = brush_rle_decoder::decode(&rle);
    channels.iter().step_by(4).map(|v| *v > 0).collect()
}

fn iou(a: &[bool], b: &[bool]) -> f64 {
    assert_eq!(a.len(), b.len());
    let count =
        |test: fn(bool, bool) -> bool| a.iter().zip(b).filter(|(a, b)| test(**a, **b)).count();
    let (both, either) = (count(|a, b| a && b), count(|a, b| a || b));
    assert!(either > 1000, "{either}");
    both as f64 / either as f64
}

/// The files in a folder and its subfolders; none if the folder does not exist.
fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return vec![];
    };
    let paths = entries.map(|entry| entry.unwrap().path());
    let found = paths.flat_map(|path| match path.is_dir() {
        true => files(&path),
        false => vec![path],
    });
    found.collect()
}

/// Waits until a folder has an embedding.
async fn wait_for_embedding(folder: &Path) {
    let start = Instant::now();
    let is_finished = |file: &PathBuf| file.extension().is_some_and(|ending| ending == "bin");
    while !files(folder).iter().any(is_finished) {
        assert!(start.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A fake Label Studio in which every task has another image.
async fn studio_with_tasks(tasks: usize) -> FakeStudio {
    FakeStudio::start(StudioOptions {
        tasks,
        has_distinct_images: true,
        ..StudioOptions::default()
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_click_on_a_warmed_image_runs_only_the_mask_decoder() {
    let studio = studio_with_tasks(6).await;
    let folder = scratch().join("warm");
    let embeddings = folder.join("cache/embeddings");
    let warm = ["warm", "--project", "7"];
    let unlabeled = [&warm[..], &["--only-unlabeled"]].concat();
    let output = run_in(&folder, &studio, &personal_access_token(), &unlabeled).await;
    // the image of one task is missing, and one task has an annotation
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let summary = text(&output.stdout);
    for expected in [
        "5 images: 4 computed, 0 already stored, 1 failed; 1 tasks skipped because they have annotations",
        "embeddings has 4 image embeddings in",
        "0 least recently used ones were deleted",
        "task 103: ",
    ] {
        assert!(summary.contains(expected), "{expected}: {summary}");
    }
    assert!(text(&output.stderr).contains("1 images failed"));
    assert_eq!(files(&embeddings).len(), 4);
    assert!(studio.stored_predictions().is_empty());

    // the next run computes only the missing embedding
    let output = run_in(&folder, &studio, &personal_access_token(), &warm).await;
    let summary = text(&output.stdout);
    assert!(
        summary.contains("6 images: 1 computed, 4 already stored, 1 failed; 0 tasks"),
        "{summary}"
    );

    // a new server with this folder
    let model_dir = ["--model-dir", folder.to_str().unwrap()];
    let started = studio.app(&personal_access_token(), &model_dir);
    let warm_mask = mask(&started, "shapes-1.png").await;
    let misses = cache_counts(&started, "misses").await;
    assert_eq!((misses("image_embeddings"), misses("masks")), (0, 1));
    let hits = cache_counts(&started, "hits").await;
    assert_eq!((hits("warm_embeddings"), misses("warm_embeddings")), (1, 0));
    // the next click finds the embedding in memory
    let mut next = click("shapes-1.png");
    next["params"]["context"]["result"][0]["value"]["x"] = json!(60.0);
    post(&started, "/predict", &next).await;
    let hits = cache_counts(&started, "hits").await;
    assert_eq!((hits("warm_embeddings"), hits("image_embeddings")), (1, 1));

    let cold = studio.app(&personal_access_token(), &[]);
    let cold_mask = mask(&cold, "shapes-1.png").await;
    let misses = cache_counts(&cold, "misses").await;
    assert_eq!(misses("image_embeddings"), 1);
    let iou = iou(&warm_mask, &cold_mask);
    assert!(iou >= 0.999, "{iou}");

    // the embeddings of another precision are not used
    let other = [&model_dir[..], &["--precision", "bf16"]].concat();
    let other = studio.app(&personal_access_token(), &other);
    mask(&other, "shapes-1.png").await;
    let misses = cache_counts(&other, "misses").await;
    assert_eq!(
        (misses("image_embeddings"), misses("warm_embeddings")),
        (1, 1)
    );
    assert_eq!(
        files(&embeddings).len(),
        5,
        "without WARM_ON_SERVE the server must not write embeddings"
    );

    // a damaged file is deleted, and the embedding is computed again
    for file in files(&embeddings) {
        let mut bytes = fs::read(&file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&file, bytes).unwrap();
    }
    let after = studio.app(&personal_access_token(), &model_dir);
    assert_eq!(mask(&after, "shapes-1.png").await, cold_mask);
    let misses = cache_counts(&after, "misses").await;
    assert_eq!(
        (misses("image_embeddings"), misses("warm_embeddings")),
        (1, 1)
    );
    assert_eq!(files(&embeddings).len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_warm_on_serve_the_server_writes_the_embeddings_that_it_computes() {
    let studio = studio_with_tasks(1).await;
    let folder = scratch().join("warm-on-serve");
    let model_dir = ["--model-dir", folder.to_str().unwrap()];
    let adding = [&model_dir[..], &["--warm-on-serve"]].concat();
    let first = studio.app(&personal_access_token(), &adding);
    mask(&first, "a.png").await;
    wait_for_embedding(&folder).await;
    let second = studio.app(&personal_access_token(), &model_dir);
    mask(&second, "a.png").await;
    assert_eq!(cache_counts(&second, "misses").await("image_embeddings"), 0);
    assert_eq!(cache_counts(&second, "hits").await("warm_embeddings"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_of_warm_names_the_setting_that_prevents_it() {
    let studio = studio_with_tasks(3).await;
    let folder = scratch().join("warm-errors");
    let run = async |more: &[&str]| {
        let arguments = [&["warm", "--project", "7"], more].concat();
        let output = run_in(&folder, &studio, &personal_access_token(), &arguments).await;
        let report = text(&output.stdout) + &text(&output.stderr);
        (output.status.code(), report)
    };
    let blocked = scratch().join("a-file-and-no-folder");
    fs::write(&blocked, "").unwrap();
    let blocked = blocked.to_str().unwrap();
    for (arguments, expected) in [
        (["--warm-bytes", "0"], "WARM_BYTES=0"),
        (["--warm-bytes", "1000"], "more than WARM_BYTES=1000 allows"),
        (["--segmenter", "none"], "SEGMENTER=none"),
        (["--cache-dir", blocked], "cannot be written (CACHE_DIR)"),
    ] {
        let (code, report) = run(&arguments).await;
        assert_eq!(code, Some(1), "{report}");
        assert!(report.contains(expected), "{expected}: {report}");
    }
    // space for two of three images: the third must not evict the first
    let adding = ["--model-dir", folder.to_str().unwrap(), "--warm-on-serve=1"];
    mask(
        &studio.app(&personal_access_token(), &adding),
        "shapes-0.png",
    )
    .await;
    wait_for_embedding(&folder).await;
    let size = fs::metadata(&files(&folder.join("cache"))[0])
        .unwrap()
        .len();
    let limit = (size * 5 / 2).to_string();
    let (code, report) = run(&["--warm-bytes", &limit]).await;
    assert_eq!(code, Some(1), "{report}");
    assert!(
        report.contains("WARM_BYTES is too small for this project"),
        "{report}"
    );
    assert!(
        report.contains("1 computed, 1 already stored, 0 failed"),
        "{report}"
    );
    assert_eq!(files(&folder.join("cache")).len(), 2);
}
