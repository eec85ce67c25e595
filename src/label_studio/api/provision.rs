//! The part of the API that `connect` uses: it creates projects, tasks and connections to backends.

use reqwest::multipart::{Form, Part};
use reqwest::{Method, Url};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::types::{Backend, BackendTest, Project};
use super::{Api, ApiError, Body};

/// Projects per page of a list.
const PAGE_SIZE: u32 = 100;

/// An image file for the tasks of a project.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct ImageFile {
    pub name: String,
    pub bytes: Vec<u8>,
}

/// The settings of a backend.
#[derive(Debug, Clone, Serialize)]
pub struct BackendSettings<'a> {
    /// The number of the project.
    pub project: u64,
    /// The backend's name in the project.
    pub title: &'a str,
    /// The backend's address as seen from Label Studio.
    pub url: &'a str,
    /// Whether annotators' prompts and smart tools are sent to it.
    pub is_interactive: bool,
    /// How Label Studio authenticates.
    #[serde(flatten)]
    pub authentication: Authentication<'a>,
}

/// How Label Studio authenticates to a backend.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(tag = "auth_method")]
#[allow(missing_docs)]
pub enum Authentication<'a> {
    #[serde(rename = "NONE")]
    None,
    #[serde(rename = "BASIC_AUTH")]
    Basic {
        #[serde(rename = "basic_auth_user")]
        user: &'a str,
        #[serde(rename = "basic_auth_pass")]
        password: &'a str,
    },
}

impl Api {
    /// The first project with exactly this title, if there is one.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn project_titled(&self, title: &str) -> Result<Option<Project>, ApiError> {
        #[derive(Deserialize)]
        struct Page {
            results: Vec<Project>,
            next: Option<String>,
        }
        for page in 1.. {
            let (page, size) = (page.to_string(), PAGE_SIZE.to_string());
            // Label Studio also lists projects whose title contains this one
            let query = [("title", title), ("page", &page), ("page_size", &size)];
            let Page { results, next } = self.get(&with_query("/api/projects/", &query)).await?;
            let mut results = results.into_iter();
            if let Some(project) = results.find(|project| project.title == title) {
                return Ok(Some(project));
            }
            if next.is_none() {
                break;
            }
        }
        Ok(None)
    }

    /// Creates a project.
    ///
    /// # Errors
    /// See [`ApiError`]; also if Label Studio rejects the labeling config.
    pub async fn create_project(&self, title: &str, config: &str) -> Result<Project, ApiError> {
        let body = serde_json::json!({ "title": title, "label_config": config });
        self.call(Method::POST, "/api/projects/", Body::Json(&body))
            .await
    }

    /// Uploads images, and creates a task of each.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn import_images(&self, project: u64, images: &[ImageFile]) -> Result<(), ApiError> {
        let form = || {
            images.iter().fold(Form::new(), |form, image| {
                let part = Part::bytes(image.bytes.clone()).file_name(image.name.clone());
                form.part(image.name.clone(), part)
            })
        };
        let path = format!("/api/projects/{project}/import");
        let imported: Result<Value, _> = self
            .call(Method::POST, &path, Body::<Value>::Form(&form))
            .await;
        imported.map(|_| ())
    }

    /// Connects a backend to a project. Label Studio calls the backend before it answers.
    ///
    /// # Errors
    /// See [`ApiError`]; also if Label Studio cannot reach the backend.
    pub async fn connect_backend(
        &self,
        settings: &BackendSettings<'_>,
    ) -> Result<Backend, ApiError> {
        self.call(Method::POST, "/api/ml", Body::Json(settings))
            .await
    }

    /// Changes the settings of a connected backend.
    ///
    /// # Errors
    /// See [`ApiError`]; also if Label Studio cannot reach the backend.
    pub async fn update_backend(
        &self,
        id: u64,
        settings: &BackendSettings<'_>,
    ) -> Result<Backend, ApiError> {
        let path = format!("/api/ml/{id}");
        self.call(Method::PATCH, &path, Body::Json(settings)).await
    }

    /// Replaces the *extra params* of a project's backend, which Label Studio then sends to it.
    ///
    /// # Errors
    /// See [`ApiError`]; [`ApiError::Status`] also if Label Studio cannot use the backend.
    pub async fn set_extra_params(
        &self,
        project: u64,
        backend: &Backend,
        params: &Value,
    ) -> Result<(), ApiError> {
        // Label Studio checks the connection again, with what the request has and not with what it has stored
        let mut body = serde_json::json!({
            "project": project,
            "url": backend.url,
            "extra_params": params,
        });
        if let Some(method) = &backend.auth_method {
            body["auth_method"] = method.as_str().into();
            body["basic_auth_user"] = backend
                .basic_auth_user
                .as_deref()
                .unwrap_or_default()
                .into();
        }
        if backend.auth_method.as_deref() == Some("BASIC_AUTH") {
            // an empty password stands for the stored one
            body["basic_auth_pass"] = "".into();
        }
        let path = format!("/api/ml/{}", backend.id);
        let changed: Result<Value, _> = self.call(Method::PATCH, &path, Body::Json(&body)).await;
        changed.map(|_| ())
    }

    /// Lets Label Studio request predictions for a random task. They are not stored.
    ///
    /// # Errors
    /// See [`ApiError`]; [`ApiError::Status`] also if the backend did not answer, or if the project has no task.
    pub async fn test_backend(&self, id: u64) -> Result<BackendTest, ApiError> {
        let path = format!("/api/ml/{id}/predict/test?random=true");
        self.call(Method::POST, &path, Body::<Value>::Empty).await
    }
}

/// A path with a query, percent-encoded.
fn with_query(path: &str, query: &[(&str, &str)]) -> String {
    let encoded = Url::parse_with_params("http://host/", query);
    let query = encoded.ok().and_then(|url| Some(url.query()?.to_owned()));
    format!("{path}?{}", query.unwrap_or_default())
}
