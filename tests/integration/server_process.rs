//! A server in its own process, with its log.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use reqwest::{Client, RequestBuilder, StatusCode};
use serde_json::Value;

use crate::command::command;
use crate::support::scratch;

/// A running `groundling serve` on a free port.
pub struct ServerProcess {
    pub url: String,
    pub client: Client,
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    log_reader: Option<JoinHandle<()>>,
}

/// Time limit of every step.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A new folder for `MODEL_DIR`.
pub fn model_dir(name: &str) -> PathBuf {
    scratch().join(format!("process-{name}"))
}

impl ServerProcess {
    /// Starts a server with these environment variables, and waits until it listens. It logs JSON.
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
            let line = lines
                .next()
                .expect("the process ended before it listened")
                .unwrap();
            let event: Value = serde_json::from_str(&line).unwrap();
            log.lock().unwrap().push(line);
            if event["fields"]["message"] == "listening" {
                break format!("http://{}", event["fields"]["address"].as_str().unwrap());
            }
        };
        let shared_log = log.clone();
        let log_reader = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                shared_log.lock().unwrap().push(line);
            }
        });
        Self {
            url,
            client,
            child,
            log,
            log_reader: Some(log_reader),
        }
    }

    /// Waits until the models are loaded.
    pub async fn wait_until_ready(&self) {
        let start = Instant::now();
        while self.get("/ready").await.0 != StatusCode::OK {
            assert!(start.elapsed() < TIMEOUT, "{:?}", self.log_lines());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Sends a request. Returns the status and the text of the response.
    pub async fn send(&self, request: RequestBuilder) -> (StatusCode, String) {
        let response = request.timeout(TIMEOUT).send().await.unwrap();
        (response.status(), response.text().await.unwrap())
    }

    /// Sends a GET request. Returns the status and the text of the response.
    pub async fn get(&self, path: &str) -> (StatusCode, String) {
        self.send(self.client.get(format!("{}{path}", self.url)))
            .await
    }

    /// Sends a POST request with a JSON body. Returns the status and the JSON of the response, null if it is not JSON.
    pub async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        let request = self.client.post(format!("{}{path}", self.url)).json(body);
        let (status, text) = self.send(request).await;
        (status, serde_json::from_str(&text).unwrap_or_default())
    }

    /// The log so far.
    pub fn log_lines(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// Sends SIGTERM.
    #[cfg(unix)]
    pub fn terminate(&self) {
        let id = self.child.id().to_string();
        let mut kill = std::process::Command::new("kill");
        let sent = kill.args(["-TERM", &id]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits until the process has ended. Returns its exit status and its log.
    pub fn wait_for_exit(mut self) -> (ExitStatus, Vec<String>) {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < TIMEOUT, "the process does not end");
            std::thread::sleep(Duration::from_millis(20));
        };
        self.log_reader.take().unwrap().join().unwrap();
        (status, self.log_lines())
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
