//! The server as a process of its own, with its log.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use reqwest::{Client, RequestBuilder, StatusCode};
use serde_json::Value;

use crate::cli::command;
use crate::support::scratch;

/// A running `groundling serve` on a port that the system chose.
pub struct Process {
    pub url: String,
    pub client: Client,
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
}

/// The longest that anything may take here.
const LONG: Duration = Duration::from_secs(60);

/// A folder of its own for `MODEL_DIR`.
pub fn folder(name: &str) -> PathBuf {
    scratch().join(format!("process-{name}"))
}

impl Process {
    /// Starts the server with these settings and waits until it listens. It logs JSON.
    pub fn start(settings: &[(&str, &str)]) -> Self {
        let client = groundling::outgoing::client().no_proxy();
        let client = client.build().unwrap();
        let mut serve = command(&["serve", "--port", "0", "--log-format", "json"]);
        let mut child = serve
            .envs(settings.iter().copied())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(vec![]));
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let url = loop {
            let line = lines.next().expect("it ended before it listened").unwrap();
            let event: Value = serde_json::from_str(&line).unwrap();
            log.lock().unwrap().push(line);
            if event["fields"]["message"] == "listening" {
                break format!("http://{}", event["fields"]["address"].as_str().unwrap());
            }
        };
        let kept = log.clone();
        let reader = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                kept.lock().unwrap().push(line);
            }
        });
        Self {
            url,
            client,
            child,
            log,
            reader: Some(reader),
        }
    }

    /// Waits until the models are loaded.
    pub async fn ready(&self) {
        let start = Instant::now();
        while self.get("/ready").await.0 != StatusCode::OK {
            assert!(start.elapsed() < LONG, "{:?}", self.lines());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Sends a request; its status and text.
    pub async fn send(&self, request: RequestBuilder) -> (StatusCode, String) {
        let response = request.timeout(LONG).send().await.unwrap();
        (response.status(), response.text().await.unwrap())
    }

    pub async fn get(&self, path: &str) -> (StatusCode, String) {
        self.send(self.client.get(format!("{}{path}", self.url)))
            .await
    }

    pub async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        let request = self.client.post(format!("{}{path}", self.url)).json(body);
        let (status, text) = self.send(request).await;
        (status, serde_json::from_str(&text).unwrap_or_default())
    }

    /// What it has logged so far.
    pub fn lines(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// Tells it to stop.
    #[cfg(unix)]
    pub fn terminate(&self) {
        let id = self.child.id().to_string();
        let mut kill = std::process::Command::new("kill");
        let sent = kill.args(["-TERM", &id]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits until it has ended; how it ended, and its whole log.
    pub fn ended(mut self) -> (ExitStatus, Vec<String>) {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < LONG, "it does not end");
            std::thread::sleep(Duration::from_millis(20));
        };
        self.reader.take().unwrap().join().unwrap();
        (status, self.lines())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
