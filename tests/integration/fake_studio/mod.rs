//! A fake Label Studio: a web server with the recorded behaviour of Label Studio for uploads, local files, cloud
//! storage URIs, access tokens, and the API calls of `annotate`, `warm`, `doctor` and `connect`.

mod backends;
mod routes;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::support::app_with;

/// The legacy token that the fake accepts.
pub const LEGACY_TOKEN: &str = "0123456789abcdef0123456789abcdef01234567";

/// The personal access token that the fake exchanges for access tokens.
pub fn personal_access_token() -> String {
    jwt(&json!({"token_type": "refresh", "exp": 8_000_000_000u64, "user": "someone"}))
}

/// A JSON web token with these claims. Its signature is invalid; the fake does not check signatures.
pub fn jwt(claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.c2ln", part(&json!({"alg": "HS256"})), part(claims))
}

/// How a fake Label Studio behaves.
#[derive(Debug, Clone, Copy)]
pub struct StudioOptions {
    /// Path prefix of all routes, such as `/studio`.
    pub prefix: &'static str,
    /// Whether legacy tokens are enabled.
    pub accepts_legacy_tokens: bool,
    /// Lifetime of access tokens in seconds.
    pub access_token_seconds: u64,
    /// Number of tasks of project 7, with ids from 100. The image of every tenth task (103, 113, ...) cannot be
    /// fetched; every tenth (105, 115, ...) has an annotation.
    pub tasks: usize,
    /// This many predictions are stored but answered with status 500.
    pub failing_stores: usize,
    /// This many predictions are deleted but answered with status 500.
    pub failing_deletions: usize,
    /// Whether the bytes of every upload are different. The picture is always the same.
    pub has_distinct_images: bool,
    /// Whether backends with private addresses are refused, as by default.
    pub blocks_private_addresses: bool,
    /// Whether the webhooks of backends with private addresses are refused, after the backend was stored.
    pub blocks_webhooks: bool,
}

impl Default for StudioOptions {
    fn default() -> Self {
        Self {
            prefix: "",
            accepts_legacy_tokens: true,
            access_token_seconds: 300,
            tasks: 0,
            failing_stores: 0,
            failing_deletions: 0,
            has_distinct_images: false,
            blocks_private_addresses: false,
            blocks_webhooks: false,
        }
    }
}

/// A running fake Label Studio.
#[derive(Debug, Clone)]
pub struct FakeStudio {
    /// `http://127.0.0.1:port`, with the path prefix.
    pub host: String,
    /// The same server as `http://localhost:port`, which is another origin.
    pub other_origin: String,
    state: Arc<StudioState>,
}

#[derive(Debug, Default)]
struct StudioState {
    other_origin: String,
    accepts_legacy_tokens: bool,
    access_token_seconds: u64,
    has_distinct_images: bool,
    blocks_private_addresses: bool,
    blocks_webhooks: bool,
    tasks: Mutex<Vec<Value>>,
    /// The title of project 7, if it was created.
    created_project: Mutex<Option<String>>,
    /// The backends of project 7.
    backends: Mutex<Vec<Value>>,
    /// How often the personal access token was exchanged. The number of an access token is its exchange.
    token_exchanges: AtomicUsize,
    /// Access tokens with a smaller number are rejected.
    first_valid_token: AtomicUsize,
    images_served: AtomicUsize,
    predictions: Mutex<Vec<Value>>,
    /// The labeling config of project 7, if it was changed.
    label_config: Mutex<Option<String>>,
    /// The id of the last stored prediction.
    last_prediction: AtomicU64,
    /// The number of predictions that are still to be answered with status 500.
    failing_stores: AtomicUsize,
    failing_deletions: AtomicUsize,
    /// Status codes of the deletions that are refused, by the id of the prediction.
    refused_deletions: Mutex<BTreeMap<u64, u16>>,
}

impl StudioState {
    /// Stores a prediction. Returns it with its id.
    fn store(&self, mut prediction: Value) -> Value {
        let id = self.last_prediction.fetch_add(1, Ordering::SeqCst) + 1;
        prediction["id"] = id.into();
        self.predictions.lock().unwrap().push(prediction.clone());
        prediction
    }
}

/// Whether a counter is above zero; it is decremented then.
fn count_down(counter: &AtomicUsize) -> bool {
    let decrement = |count: usize| count.checked_sub(1);
    let decremented = counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, decrement);
    decremented.is_ok()
}

impl FakeStudio {
    /// Starts a server on a free port.
    pub async fn start(options: StudioOptions) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let other_origin = format!("http://localhost:{port}");
        let state = Arc::new(StudioState {
            other_origin: other_origin.clone(),
            accepts_legacy_tokens: options.accepts_legacy_tokens,
            access_token_seconds: options.access_token_seconds,
            has_distinct_images: options.has_distinct_images,
            blocks_private_addresses: options.blocks_private_addresses,
            blocks_webhooks: options.blocks_webhooks,
            tasks: Mutex::new((0..options.tasks).map(task).collect()),
            failing_stores: options.failing_stores.into(),
            failing_deletions: options.failing_deletions.into(),
            ..StudioState::default()
        });
        let routes = routes::router(state.clone());
        let routes = match options.prefix {
            "" => routes,
            prefix => Router::new().nest(prefix, routes),
        };
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Self {
            host: format!("http://127.0.0.1:{port}{}", options.prefix),
            other_origin,
            state,
        }
    }

    /// A groundling server that is connected to this Label Studio with a token.
    pub fn app(&self, token: &str, flags: &[&str]) -> Router {
        let connection = [
            "--label-studio-host",
            &self.host,
            "--label-studio-access-token",
            token,
        ];
        app_with(&[&connection, flags].concat())
    }

    /// How often the personal access token was exchanged for an access token.
    pub fn token_exchanges(&self) -> usize {
        self.state.token_exchanges.load(Ordering::SeqCst)
    }

    /// Rejects all access tokens that were issued so far.
    pub fn revoke_access_tokens(&self) {
        let next = self.token_exchanges() + 1;
        self.state.first_valid_token.store(next, Ordering::SeqCst);
    }

    /// The number of images that were sent.
    pub fn images_served(&self) -> usize {
        self.state.images_served.load(Ordering::SeqCst)
    }

    /// The labeling config of project 7, if it was changed.
    pub fn changed_label_config(&self) -> Option<String> {
        self.state.label_config.lock().unwrap().clone()
    }

    /// The backends that were connected to project 7.
    pub fn backends(&self) -> Vec<Value> {
        self.state.backends.lock().unwrap().clone()
    }

    /// The tasks of project 7.
    pub fn tasks(&self) -> Vec<Value> {
        self.state.tasks.lock().unwrap().clone()
    }

    /// The predictions that were stored.
    pub fn stored_predictions(&self) -> Vec<Value> {
        self.state.predictions.lock().unwrap().clone()
    }

    /// Stores a prediction without regions. Returns its id.
    pub fn add_prediction(&self, task: u64, model_version: Option<&str>) -> u64 {
        let prediction = json!({"task": task, "model_version": model_version, "result": []});
        self.state.store(prediction)["id"].as_u64().unwrap()
    }

    /// Answers the deletion of a prediction with an error status, or deletes it again.
    pub fn refuse_deletion(&self, prediction: u64, status: Option<u16>) {
        let mut refused = self.state.refused_deletions.lock().unwrap();
        match status {
            Some(status) => refused.insert(prediction, status),
            None => refused.remove(&prediction),
        };
    }
}

/// A task of project 7.
fn task(index: usize) -> Value {
    let image = match index % 10 {
        3 => "/data/upload/7/missing.png".to_owned(),
        _ => format!("/data/upload/7/shapes-{index}.png"),
    };
    let annotations = u64::from(index % 10 == 5);
    let mut task =
        json!({"id": 100 + index, "data": {"image": image}, "total_annotations": annotations});
    if annotations > 0 {
        task["annotations"] = true_annotations();
    }
    task
}

/// The annotations of an annotated task: an older one, the true boxes of the picture of shapes and of one that nothing finds,
/// and a newer one that was skipped.
fn true_annotations() -> Value {
    let rectangle = |label: &str, [x, y, width, height]: [f64; 4]| {
        let value = json!({"x": x, "y": y, "width": width, "height": height, "rotation": 0, "rectanglelabels": [label]});
        json!({"id": label, "type": "rectanglelabels", "from_name": "label", "to_name": "image",
            "original_width": 640, "original_height": 480, "value": value})
    };
    let truth = [
        rectangle("Red Circle", [64.0, 59.0, 29.0, 39.0]),
        rectangle("Blue Star", [13.0, 68.0, 21.5, 29.5]),
        rectangle("Red Circle", [1.0, 1.0, 10.0, 10.0]),
    ];
    json!([
        {"id": 1, "was_cancelled": false, "ground_truth": false, "result": []},
        {"id": 2, "was_cancelled": false, "ground_truth": false, "result": truth},
        {"id": 3, "was_cancelled": true, "ground_truth": false, "result": []},
    ])
}
