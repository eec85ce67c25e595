//! Every line of the log about a request says which request it is, and every line about a task which task.

use serde_json::Value;

use crate::process::{Process, folder};
use crate::studio::{LEGACY, Setup, Studio};
use crate::support::{SHAPES_CONFIG, batch_request, prompt_request};

/// The span of this name around a line of the log.
fn span<'a>(line: &'a Value, name: &str) -> Option<&'a Value> {
    let mut spans = line["spans"].as_array()?.iter();
    spans.find(|span| span["name"] == name)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_line_says_which_request_and_task_it_is_about() {
    let studio = Studio::start(Setup::default()).await;
    let models = folder("log-lines");
    let server = Process::start(&[
        ("LABEL_STUDIO_HOST", &studio.host),
        ("LABEL_STUDIO_ACCESS_TOKEN", LEGACY),
        ("MODEL_DIR", models.to_str().unwrap()),
        ("LOG_LEVEL", "info"),
    ]);
    server.ready().await;
    let before = server.lines().len();
    let send = async |id: &str, body: &Value| {
        let request = server.client.post(format!("{}/predict", server.url));
        let request = request.json(body).header("x-request-id", id);
        let response = request.send().await.unwrap();
        let told = response.headers()["x-request-id"]
            .to_str()
            .unwrap()
            .to_owned();
        response.bytes().await.unwrap();
        told
    };
    let well = prompt_request(SHAPES_CONFIG, "/data/upload/1/a.png", "red circle");
    let missing = prompt_request(SHAPES_CONFIG, "/data/upload/1/missing.png", "red circle");
    let images = ["/data/upload/1/b.png", "/data/upload/1/missing.png"];
    let batch = batch_request(SHAPES_CONFIG, &images);
    assert_eq!(send("first", &well).await, "first");
    assert_eq!(send("second", &missing).await, "second");
    assert_eq!(send("third", &batch).await, "third");
    let invented = server.client.get(format!("{}/health", server.url));
    let invented = invented.send().await.unwrap();
    assert_eq!(invented.headers()["x-request-id"].len(), 16);

    let lines: Vec<Value> = server.lines()[before..]
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let of = |id: &str| -> Vec<&Value> {
        let is_of = |line: &&Value| span(line, "request").is_some_and(|span| span["id"] == id);
        lines.iter().filter(is_of).collect()
    };
    let mut hashes = vec![];
    for (id, count, body) in [
        ("first", 1, &well),
        ("second", 1, &missing),
        ("third", 2, &batch),
    ] {
        let lines = of(id);
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
    assert_eq!(hash("first"), hash("second"), "it is the same prompt");
    assert_ne!(hash("first"), hash("third"));
    // nothing that was logged meanwhile belongs to nobody
    let strays = lines.iter().filter(|line| span(line, "request").is_none());
    assert_eq!(strays.count(), 0, "{lines:?}");
}
