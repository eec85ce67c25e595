//! The OpenAPI document describes exactly what the server does. `tests/api` compares responses with it.

use std::collections::BTreeSet;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::support::{
    SHAPES, SHAPES_CONFIG, app, app_with, data_uri, get_json, post, prompt_request,
};

async fn document(app: &Router) -> Value {
    let (status, docs) = get_json(app, "/api-docs").await;
    assert_eq!(status, StatusCode::OK);
    assert!(docs["openapi"].as_str().unwrap().starts_with("3.1."));
    docs
}

/// Method, path and description of every documented operation.
fn operations(docs: &Value) -> Vec<(String, String, &Value)> {
    let paths = docs["paths"].as_object().unwrap().iter();
    let all = paths.flat_map(|(path, methods)| {
        let methods = methods.as_object().unwrap().iter();
        methods.map(|(method, operation)| (method.to_uppercase(), path.clone(), operation))
    });
    all.collect()
}

async fn status(app: &Router, method: &str, path: &str) -> StatusCode {
    let request = Request::builder().method(method).uri(path);
    let request = request.body(Body::empty()).unwrap();
    app.clone().oneshot(request).await.unwrap().status()
}

#[tokio::test]
async fn every_route_and_method_is_documented_and_no_other() {
    let app = app();
    let docs = document(&app).await;
    let documented: BTreeSet<String> = docs["paths"].as_object().unwrap().keys().cloned().collect();
    // axum shows its routes only in the debug format
    let text = format!("{app:?}");
    let quoted = text.split('"').skip(1).step_by(2);
    let routes: BTreeSet<String> = quoted
        .filter(|part| part.starts_with('/') && !part.contains('*'))
        // the interface of the page belongs to the page, and may change in any release
        .filter(|part| !part.starts_with("/playground"))
        .map(str::to_owned)
        .collect();
    assert!(routes.contains("/predict"), "{text}");
    assert_eq!(routes, documented);
    // exactly the documented methods are allowed
    for path in &documented {
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
            let is_documented = docs["paths"][path][method.to_lowercase()].is_object();
            let is_allowed = status(&app, method, path).await != StatusCode::METHOD_NOT_ALLOWED;
            assert_eq!(is_documented, is_allowed, "{method} {path}");
        }
    }
}

#[tokio::test]
async fn every_response_is_documented_with_a_schema() {
    let docs = document(&app()).await;
    for (method, path, operation) in operations(&docs) {
        let responses = operation["responses"].as_object().unwrap();
        for (status, response) in responses {
            // a redirect has no body
            if status == "303" {
                continue;
            }
            let contents = response["content"].as_object().unwrap();
            for (kind, content) in contents {
                let schema = content["schema"].as_object().unwrap();
                assert!(!schema.is_empty(), "{method} {path} {status} {kind}");
                if let Some(name) = schema.get("$ref").and_then(Value::as_str) {
                    let pointer = name.trim_start_matches('#');
                    assert!(
                        docs.pointer(pointer).is_some(),
                        "the document has no {name}"
                    );
                }
            }
        }
        let expected: &[&str] = match path.as_str() {
            "/predict" => &[
                "200", "400", "403", "408", "413", "415", "422", "500", "502", "503",
            ],
            "/setup" => &["200", "400", "403", "408", "413", "415", "500", "503"],
            "/webhook" => &["200", "201", "403", "415", "500"],
            "/ready" => &["200", "403", "500", "503"],
            "/" => &["200", "303", "403", "500"],
            _ => &["200", "403", "500"],
        };
        let documented: Vec<&str> = responses.keys().map(String::as_str).collect();
        assert_eq!(documented, expected, "{method} {path}");
    }
    let busy = &docs["paths"]["/predict"]["post"]["responses"]["503"];
    assert!(busy["headers"]["Retry-After"].is_object(), "{busy}");
    assert!(busy["headers"]["X-Request-Id"].is_object(), "{busy}");
}

#[tokio::test]
async fn credentials_are_documented_exactly_where_they_are_required() {
    let open = document(&app()).await;
    assert!(open["components"]["securitySchemes"].is_null());
    let protected = app_with(&["--basic-auth-user", "user", "--basic-auth-pass", "word"]);
    let request = Request::get("/api-docs").header("authorization", "Basic dXNlcjp3b3Jk");
    let response = protected
        .clone()
        .oneshot(request.body(Body::empty()).unwrap())
        .await
        .unwrap();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let docs: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(
        docs["components"]["securitySchemes"]["basic"]["scheme"],
        "basic"
    );
    for (method, path, operation) in operations(&docs) {
        let is_required = status(&protected, &method, &path).await == StatusCode::UNAUTHORIZED;
        assert_eq!(operation["security"].is_array(), is_required, "{path}");
        assert_eq!(
            operation["responses"]["401"].is_object(),
            is_required,
            "{path}"
        );
    }
}

#[tokio::test]
async fn a_list_in_place_of_an_object_is_an_error_that_names_the_field() {
    // serde would accept each list as the fields of the object, in order
    let app = app();
    let valid = prompt_request(SHAPES_CONFIG, &data_uri(SHAPES), "red circle");
    let mut list_as_task = valid.clone();
    list_as_task["tasks"] = json!([[1, {"image": data_uri(SHAPES)}, null, null]]);
    let mut list_as_params = valid.clone();
    list_as_params["params"] = json!([{"result": []}, "user", "password"]);
    let list_as_body = json!([valid["tasks"], SHAPES_CONFIG, "1.2", null]);
    for (body, named) in [
        (list_as_task, "tasks[0]: "),
        (list_as_params, "params: "),
        (list_as_body, "the body: "),
    ] {
        let (status, answer) = post(&app, "/predict", &body).await;
        let error = answer["error"].as_str().unwrap_or_default();
        assert_eq!(status, StatusCode::BAD_REQUEST, "{named}");
        assert!(
            error.contains(named) && error.contains("an object"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn an_error_of_predict_names_the_field_that_is_wrong() {
    let app = app();
    for (field, value, named) in [
        ("tasks", json!("x"), "tasks: "),
        ("tasks", json!([5]), "tasks[0]: "),
        ("label_config", json!(5), "label_config: "),
        ("label_config", json!(" "), "label_config is empty"),
        ("project", json!(true), "project: "),
        ("params", json!({"login": 5}), "params.login: "),
    ] {
        let mut body = prompt_request(SHAPES_CONFIG, &data_uri(SHAPES), "red circle");
        body[field] = value;
        let (status, answer) = post(&app, "/predict", &body).await;
        let error = answer["error"].as_str().unwrap_or_default();
        assert_eq!(status, StatusCode::BAD_REQUEST, "{named}");
        assert!(error.contains(named), "{named}: {error}");
    }
    let (_, answer) = post(&app, "/predict", &json!({"tasks": []})).await;
    let error = answer["error"].as_str().unwrap();
    assert!(error.contains("missing field `label_config`"), "{error}");
}

#[tokio::test]
async fn an_unsupported_content_encoding_is_named_with_the_supported_one() {
    let app = app();
    for encoding in ["br", "gzip, gzip", "\u{fc}"] {
        let request = Request::post("/setup")
            .header("content-type", "application/json")
            .header("content-encoding", encoding)
            .body(Body::from("{}"));
        let response = app.clone().oneshot(request.unwrap()).await.unwrap();
        assert_eq!(response.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
        assert_eq!(response.headers()["accept-encoding"], "gzip");
        assert!(response.headers().contains_key("x-request-id"));
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&bytes).unwrap();
        let error = body["error"].as_str().unwrap();
        assert!(
            error.contains(encoding) && error.contains("gzip-encoded"),
            "{error}"
        );
    }
}
