//! Log lines name the request and the task that they are about.

use serde_json::Value;

use crate::fake_studio::{FakeStudio, LEGACY_TOKEN, StudioOptions};
use crate::server_process::{ServerProcess, model_dir};
use crate::support::{SHAPES_CONFIG, batch_request, prompt_request};

/// The span with this name around a log line.
fn span<'a>(line: &'a Value, name: &str) -> Option<&'a Value> {
    let mut spans = line["spans"].as_array()?.iter();
    spans.find(|span| span["name"] == name)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_log_line_names_its_request_and_its_task() {
    let studio = FakeStudio::start(StudioOptions::default()).await;
    let models = model_dir("log-lines");
    let server = ServerProcess::start(&[
        ("LABEL_STUDIO_HOST", &studio.host),
        ("LABEL_STUDIO_ACCESS_TOKEN", LEGACY_TOKEN),
        ("MODEL_DIR", models.to_str().unwrap()),
        ("LOG_LEVEL", "info"),
    ]);
    server.wait_until_ready().await;
    let before = server.log_lines().len();
    let send = async |id: &str, body: &Value| {
        let request = server.client.post(format!("{}/predict", server.url));
        let request = request.json(body).header("x-request-id", id);
        let response = request.send().await.unwrap();
        let request_id = response.headers()["x-request-id"]
            .to_str()
            .unwrap()
            .to_owned();
        response.bytes().await.unwrap();
        request_id
    };
    let good = prompt_request(SHAPES_CONFIG, "/data/upload/1/a.png", "red circle");
    let missing = prompt_request(SHAPES_CONFIG, "/data/upload/1/missing.png", "red circle");
    let images = ["/data/upload/1/b.png", "/data/upload/1/missing.png"];
    let batch = batch_request(SHAPES_CONFIG, &images);
    assert_eq!(send("first", &good).await, "first");
    assert_eq!(send("second", &missing).await, "second");
    assert_eq!(send("third", &batch).await, "third");
    let generated = server.client.get(format!("{}/health", server.url));
    let generated = generated.send().await.unwrap();
    assert_eq!(generated.headers()["x-request-id"].len(), 16);

    let lines: Vec<Value> = server.log_lines()[before..]
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let lines_of = |id: &str| -> Vec<&Value> {
        let is_of_request =
            |line: &&Value| span(line, "request").is_some_and(|span| span["id"] == id);
        lines.iter().filter(is_of_request).collect()
    };
    let mut hashes = vec![];
    for (id, count, body) in [
        ("first", 1, &good),
        ("second", 1, &missing),
        ("third", 2, &batch),
    ] {
        let lines = lines_of(id);
        assert!(lines.len() >= count, "{id}: {lines:?}");
        for line in lines {
            let request = span(line, "request").unwrap();
            assert_eq!(request["route"], "/predict");
            assert_eq!(request["project"], body["project"], "{line}");
            let task = span(line, "task").unwrap_or_else(|| panic!("{line}"));
            let ids = body["tasks"].as_array().unwrap().iter();
            assert!(
                ids.map(|task| &task["id"]).any(|id| *id == task["id"]),
                "{line}"
            );
            assert!(task["timings"].is_string(), "{line}");
            let hash = task["prompt_hash"]
                .as_str()
                .unwrap_or_else(|| panic!("{line}"));
            assert_eq!(hash.len(), 12);
            hashes.push((id, hash.to_owned()));
        }
    }
    let hash = |id: &str| hashes.iter().find(|(of, _)| *of == id).unwrap().1.clone();
    assert_eq!(hash("first"), hash("second"), "the prompts are equal");
    assert_ne!(hash("first"), hash("third"), "the prompts are different");
    // every line belongs to a request
    let others = lines.iter().filter(|line| span(line, "request").is_none());
    assert_eq!(others.count(), 0, "{lines:?}");
}
