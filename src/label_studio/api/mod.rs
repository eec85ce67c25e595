//! The part of Label Studio's API that the commands for projects use.

mod error;
mod provision;
mod types;

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::header::AUTHORIZATION;
use reqwest::multipart::Form;
use reqwest::{Method, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use self::error::ApiError;
pub use self::provision::{Authentication, BackendSettings, ImageFile};
pub use self::types::{
    Backend, BackendTest, Project, StoredAnnotation, StoredPrediction, StoredTask, TaskPage, User,
};
use super::LabelStudio;
use crate::outgoing::{self, client, error_chain};

/// Maximum size of a response in bytes. It is large because a page of tasks contains all their annotations, including
/// masks.
const MAX_RESPONSE_BYTES: usize = 1 << 30;

/// A client for the API that authenticates its requests.
#[derive(Debug, Clone)]
pub struct Api {
    client: reqwest::Client,
    label_studio: LabelStudio,
}

/// The body of a request.
enum Body<'a, T> {
    Empty,
    Json(&'a T),
    /// A form, made again for each attempt.
    Form(&'a (dyn Fn() -> Form + Sync)),
}

const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Number of attempts. A busy Label Studio answers 500 or does not answer for a short time, and a restart takes longer.
/// The delays between attempts are 0.5, 1, 2, 4 and 8 s, or the `Retry-After` of the response.
const MAX_ATTEMPTS: u32 = 6;

impl Api {
    /// Creates an API client with its own connections.
    ///
    /// # Errors
    /// If the system's TLS settings cannot be read.
    pub fn new(label_studio: LabelStudio) -> Result<Self, reqwest::Error> {
        let client = client().timeout(REQUEST_TIMEOUT).build()?;
        Ok(Self {
            client,
            label_studio,
        })
    }

    /// The release version of Label Studio. This call needs no token.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn version(&self) -> Result<String, ApiError> {
        #[derive(Deserialize)]
        struct Version {
            release: String,
        }
        let version: Version = self.get("/api/version").await?;
        Ok(version.release)
    }

    /// The user that the token belongs to.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn whoami(&self) -> Result<User, ApiError> {
        self.get("/api/current-user/whoami").await
    }

    /// A project.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn project(&self, id: u64) -> Result<Project, ApiError> {
        self.get(&format!("/api/projects/{id}/")).await
    }

    /// Replaces the labeling config of a project.
    ///
    /// # Errors
    /// See [`ApiError`]; also if Label Studio rejects the config.
    pub async fn set_label_config(&self, project: u64, config: &str) -> Result<(), ApiError> {
        let body = serde_json::json!({ "label_config": config });
        let path = format!("/api/projects/{project}/");
        let changed: Result<Value, _> = self.call(Method::PATCH, &path, Body::Json(&body)).await;
        changed.map(|_| ())
    }

    /// A task, with URLs as they were imported.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn task(&self, id: u64) -> Result<StoredTask, ApiError> {
        self.get(&format!("/api/tasks/{id}/?resolve_uri=false"))
            .await
    }

    /// Returns one page of a project's tasks, with URLs as they were imported. The first page is 1.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn tasks(&self, project: u64, page: u64, size: u64) -> Result<TaskPage, ApiError> {
        self.get(&format!(
            "/api/tasks/?project={project}&page={page}&page_size={size}&fields=all&resolve_uri=false"
        ))
        .await
    }

    /// The stored predictions of a task.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn predictions(&self, task: u64) -> Result<Vec<StoredPrediction>, ApiError> {
        self.get(&format!("/api/predictions/?task={task}")).await
    }

    /// The model versions of all predictions in a project, with the number of predictions of each.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn model_versions(&self, project: u64) -> Result<BTreeMap<String, u64>, ApiError> {
        self.get(&format!("/api/projects/{project}/model-versions/"))
            .await
    }

    /// The ML backends connected to a project.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn backends(&self, project: u64) -> Result<Vec<Backend>, ApiError> {
        self.get(&format!("/api/ml?project={project}")).await
    }

    /// Checks whether the token's user may store predictions. It sends a prediction without a task: Label Studio checks
    /// permissions first, so a user who has them gets a 400 for the invalid prediction, and nothing is stored.
    ///
    /// # Errors
    /// [`ApiError::Refused`] if the user may not; other errors as for all calls.
    pub async fn may_store_predictions(&self) -> Result<(), ApiError> {
        let empty = Value::Object(Map::new());
        let result: Result<Value, _> = self
            .call(Method::POST, "/api/predictions/", Body::Json(&empty))
            .await;
        match result {
            Err(ApiError::Status { status: 400, .. }) => Ok(()),
            result => result.map(|_| ()),
        }
    }

    /// Stores a prediction (`task`, `result`, `score`, `model_version`) once: if an attempt fails for a transient
    /// reason, the stored predictions are checked before it is sent again.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn store_prediction(
        &self,
        task: u64,
        model_version: &str,
        prediction: &impl Serialize,
    ) -> Result<(), ApiError> {
        let mut attempts = 0;
        loop {
            let result: Result<Value, _> = self
                .call(Method::POST, "/api/predictions/", Body::Json(prediction))
                .await;
            attempts += 1;
            match result {
                Err(error) if error.is_transient() && attempts < MAX_ATTEMPTS => {
                    tokio::time::sleep(error.retry_delay(attempts)).await;
                    let stored = self.predictions(task).await?;
                    let is_stored =
                        |p: &StoredPrediction| p.model_version.as_deref() == Some(model_version);
                    if stored.iter().any(is_stored) {
                        return Ok(());
                    }
                }
                result => return result.map(|_| ()),
            }
        }
    }

    /// Deletes a prediction, with retries. A prediction that does not exist is no error: it may have been deleted by an
    /// attempt whose response was lost.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn delete_prediction(&self, id: u64) -> Result<(), ApiError> {
        let path = format!("/api/predictions/{id}/");
        match self.text_with_retries(Method::DELETE, &path).await {
            Err(ApiError::Status { status: 404, .. }) => Ok(()),
            // a successful response has no body
            result => result.map(|_| ()),
        }
    }

    /// Sends a GET request, with retries.
    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        let text = self.text_with_retries(Method::GET, path).await?;
        parse_json(path, &text)
    }

    /// Sends a request without a body, with retries. Returns the text of a successful response.
    async fn text_with_retries(&self, method: Method, path: &str) -> Result<String, ApiError> {
        let mut attempts = 0;
        loop {
            let result = self.text(&method, path, &Body::<Value>::Empty).await;
            attempts += 1;
            match result {
                Err(error) if error.is_transient() && attempts < MAX_ATTEMPTS => {
                    tokio::time::sleep(error.retry_delay(attempts)).await;
                }
                result => return result,
            }
        }
    }

    /// Sends a request once. Returns the JSON of a successful response.
    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Body<'_, impl Serialize>,
    ) -> Result<T, ApiError> {
        let text = self.text(&method, path, &body).await?;
        parse_json(path, &text)
    }

    /// Sends a request once. Returns the text of a successful response.
    async fn text(
        &self,
        method: &Method,
        path: &str,
        body: &Body<'_, impl Serialize>,
    ) -> Result<String, ApiError> {
        let first = self.send(method, path, body).await?;
        let response = if first.status() == StatusCode::UNAUTHORIZED
            && self.label_studio.discard_access_token().await
        {
            self.send(method, path, body).await?
        } else {
            first
        };
        let status = response.status();
        let path = without_query(path);
        let location = response.headers().get("location").cloned();
        let retry_after = outgoing::retry_after(&response);
        let text = outgoing::read_body(response, MAX_RESPONSE_BYTES).await;
        let text = text.map_err(|error| ApiError::Unreachable {
            url: self.label_studio.base().unwrap_or_default().to_owned(),
            reason: error.to_string(),
            is_permanent: false,
        })?;
        let text = String::from_utf8_lossy(&text).into_owned();
        // 403 is also the answer to a forbidden address of a backend
        if matches!(status.as_u16(), 401 | 403) && !text.contains(error::BLOCKED_ADDRESS) {
            return Err(ApiError::Refused {
                path,
                status: status.as_u16(),
                hint: self.label_studio.refusal_hint(),
            });
        }
        if status.is_redirection() {
            let to = location.as_ref().and_then(|to| to.to_str().ok());
            return Err(ApiError::Status {
                path,
                status: status.as_u16(),
                text: format!(
                    "a redirect to {}; set LABEL_STUDIO_HOST to the final address",
                    to.unwrap_or("an unknown address")
                ),
                retry_after,
            });
        }
        if !status.is_success() {
            return Err(ApiError::Status {
                path,
                status: status.as_u16(),
                text: error::summary(&text),
                retry_after,
            });
        }
        Ok(text)
    }

    async fn send(
        &self,
        method: &Method,
        path: &str,
        body: &Body<'_, impl Serialize>,
    ) -> Result<reqwest::Response, ApiError> {
        let base = self.label_studio.base().ok_or(ApiError::NoHost)?;
        let mut request = self.client.request(method.clone(), format!("{base}{path}"));
        if let Some(header) = self.label_studio.authorization(&self.client).await? {
            request = request.header(AUTHORIZATION, header);
        }
        request = match body {
            Body::Empty => request,
            Body::Json(value) => request.json(value),
            Body::Form(form) => request.multipart(form()),
        };
        request.send().await.map_err(|e| self.unreachable(e))
    }

    fn unreachable(&self, error: reqwest::Error) -> ApiError {
        let error = error.without_url();
        ApiError::Unreachable {
            url: self.label_studio.base().unwrap_or_default().to_owned(),
            reason: error_chain(&error),
            is_permanent: outgoing::is_about_certificates(&error),
        }
    }
}

fn parse_json<T: DeserializeOwned>(path: &str, text: &str) -> Result<T, ApiError> {
    serde_json::from_str(text).map_err(|error| ApiError::InvalidResponse {
        path: without_query(path),
        reason: error.to_string(),
    })
}

fn without_query(path: &str) -> String {
    path.split('?').next().unwrap_or_default().to_owned()
}
