//! Snapshots of what users and operators see: responses, errors, settings, metrics and the list of models. A change of
//! any of them fails here first and shows the difference.
//!
//! The expected texts are in `snapshots/`. After an intended change, `INSTA_UPDATE=always cargo test --release --test
//! integration snapshots` rewrites them; review them with `git diff`. Numbers of models are rounded to two digits, because
//! the last digits differ between instruction sets, and random ids and masks are replaced by a text in brackets.

use std::collections::BTreeMap;
use std::process::Command;

use clap::CommandFactory;
use groundling::config::Cli;
use insta::{assert_json_snapshot, assert_snapshot};
use serde_json::{Value, json};

use crate::command::{command, text};
use crate::deploy::metrics;
use crate::support::{
    SHAPES, SHAPES_CONFIG, app, app_with, batch_request, data_uri, files_below, get_json, payload,
    post, prompt_request, repository, scratch,
};

/// Replaces values that differ between two runs or two machines, and rounds numbers to two digits.
fn redact(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(redact),
        Value::Object(fields) => {
            for (key, value) in fields {
                match (key.as_str(), &value) {
                    ("id", Value::String(_)) => *value = json!("[id]"),
                    ("rle", Value::Array(_)) => *value = json!("[rle]"),
                    _ => redact(value),
                }
            }
        }
        Value::String(text) => *text = text.replace(env!("CARGO_PKG_VERSION"), "[version]"),
        Value::Number(number) if number.is_f64() => {
            let number = number.as_f64().unwrap();
            *value = json!((number * 100.0).round() / 100.0);
        }
        _ => {}
    }
}

fn redacted(mut value: Value) -> Value {
    redact(&mut value);
    value
}

#[tokio::test]
async fn the_response_to_a_typed_prompt() {
    let request = prompt_request(SHAPES_CONFIG, &data_uri(SHAPES), "red circle. star");
    let (_, body) = post(&app_with(&[]), "/predict", &request).await;
    let response = redacted(body);
    assert_json_snapshot!(response);
}

#[tokio::test]
async fn the_response_to_a_batch_with_an_unreadable_image() {
    let mut request = batch_request(SHAPES_CONFIG, &[&data_uri(SHAPES), "data:,text"]);
    request["project"] = json!("5.1795353181");
    let (_, body) = post(&app_with(&[]), "/predict", &request).await;
    let response = redacted(body);
    assert_json_snapshot!(response);
}

#[tokio::test]
async fn the_responses_of_setup_health_ready_and_versions() {
    let app = app_with(&["--device", "cpu"]);
    // the first prediction waits until the models are loaded
    let request = prompt_request(SHAPES_CONFIG, &data_uri(SHAPES), "red circle");
    post(&app, "/predict", &request).await;
    let mut responses = BTreeMap::new();
    let (_, setup) = post(&app, "/setup", &payload("setup")).await;
    responses.insert("/setup", redacted(setup));
    for route in ["/health", "/ready", "/versions"] {
        responses.insert(route, redacted(get_json(&app, route).await.1));
    }
    assert_json_snapshot!(responses);
}

#[tokio::test]
async fn the_errors_of_predict() {
    let app = app();
    let valid = prompt_request(SHAPES_CONFIG, &data_uri(SHAPES), "red circle");
    let with_field = |field: &str, value: Value| {
        let mut request = valid.clone();
        request[field] = value;
        request
    };
    let with_config = |config: &str| with_field("label_config", json!(config));
    let with_image = |image: &str| prompt_request(SHAPES_CONFIG, image, "red circle");
    let with_prompt = |prompt: &str| prompt_request(SHAPES_CONFIG, &data_uri(SHAPES), prompt);
    let mut without_image = valid.clone();
    without_image["tasks"][0]["data"] = json!({"photo": "x"});
    let errors = [
        ("a body that is a text", json!("text")),
        ("no labeling config", json!({"tasks": []})),
        (
            "a number as labeling config",
            with_field("label_config", json!(5)),
        ),
        ("an empty labeling config", with_config(" ")),
        ("XML that is not well-formed", with_config("<View><Image")),
        (
            "a labeling config without an image",
            with_config("<View></View>"),
        ),
        (
            "a labeling config without a text area",
            with_config(&SHAPES_CONFIG.replace("TextArea", "Number")),
        ),
        ("a prompt without words", with_prompt(" . ")),
        (
            "a prompt that is too long",
            with_prompt(&"word ".repeat(400)),
        ),
        ("a task without the image's field", without_image),
        (
            "an unreadable image",
            with_image("data:image/png;base64,AAAA"),
        ),
        ("an unsupported URL", with_image("ftp://host/x.png")),
        ("a private address", with_image("http://10.0.0.1/x.png")),
        (
            "an upload without LABEL_STUDIO_HOST",
            with_image("/data/upload/1/a.png"),
        ),
    ];
    let mut lines = String::new();
    for (name, request) in errors {
        let (status, body) = post(&app, "/predict", &request).await;
        let error = body["error"].as_str().unwrap();
        lines += &format!("{name}\n  {}: {error}\n", status.as_u16());
    }
    assert_snapshot!(lines);
}

/// All settings of the server with their help texts.
#[test]
fn the_help_of_serve() {
    // without environment variables, whose values the help shows
    let output = Command::new(env!("CARGO_BIN_EXE_groundling"))
        .args(["serve", "--help"])
        .env_clear()
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let help = text(&output.stdout);
    assert_snapshot!(help);
}

/// Flag, environment variable and default of each setting, and the commands that have it.
#[test]
fn the_settings_and_their_commands() {
    let cli = Cli::command();
    let mut settings: Vec<(String, Vec<&str>)> = vec![];
    for command in cli.get_subcommands() {
        for argument in command.get_arguments() {
            let mut line = match argument.get_long() {
                Some(long) => format!("--{long}"),
                None => format!("<{}>", argument.get_id().as_str().to_uppercase()),
            };
            if let Some(variable) = argument.get_env() {
                line += &format!("  {}", variable.display());
            }
            let defaults = argument.get_default_values().iter();
            let defaults: Vec<_> = defaults.map(|value| value.to_string_lossy()).collect();
            if defaults.iter().any(|default| !default.is_empty()) {
                line += &format!("  [default: {}]", defaults.join(","));
            }
            let known = settings.iter_mut().find(|(setting, _)| *setting == line);
            match known {
                Some((_, commands)) => commands.push(command.get_name()),
                None => settings.push((line, vec![command.get_name()])),
            }
        }
    }
    let lines = settings.iter();
    let lines = lines.map(|(setting, commands)| format!("{setting}\n    {}\n", commands.join(" ")));
    let list: String = lines.collect();
    assert_snapshot!(list);
}

/// Name, type, labels and help of each metric.
#[tokio::test]
async fn the_metrics() {
    let lines = metrics().await.into_iter().map(|(name, metric)| {
        let labels: Vec<String> = metric.labels.into_iter().collect();
        let labels = labels.join(", ");
        format!("{name}{{{labels}}} {}\n    {}\n", metric.kind, metric.help)
    });
    let list: String = lines.collect();
    assert_snapshot!(list);
}

/// Each operation with its request, its statuses and its responses.
#[tokio::test]
async fn the_operations_of_the_openapi_document() {
    let (_, document) = get_json(&app(), "/api-docs").await;
    let schema = |content: &Value| {
        let contents = content["content"].as_object().into_iter().flatten();
        let schemas = contents.map(|(_, content)| match content["schema"]["$ref"].as_str() {
            Some(name) => name.rsplit('/').next().unwrap().to_owned(),
            None => content["schema"]["type"].as_str().unwrap_or("?").to_owned(),
        });
        schemas.collect::<Vec<_>>().join(" or ")
    };
    let mut lines = String::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let body = schema(&operation["requestBody"]);
            lines += &format!("{} {path} {body}\n", method.to_uppercase());
            for (status, response) in operation["responses"].as_object().unwrap() {
                lines += &format!("  {status} {}\n", schema(response));
            }
        }
    }
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let names: Vec<&str> = schemas.keys().map(String::as_str).collect();
    lines += &format!("schemas\n  {}\n", names.join("\n  "));
    assert_snapshot!(lines);
}

#[test]
fn the_list_of_models() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().to_str().unwrap();
    let output = command(&["models", "--model-dir", folder])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let cache = scratch().to_str().unwrap();
    let list = text(&output.stdout).replace(folder, "[folder]");
    let list = list.replace(cache, "[scratch]");
    assert_snapshot!(list);
}

#[test]
fn every_snapshot_belongs_to_a_test() {
    let tests = include_str!("snapshots.rs");
    for file in files_below(&repository("tests/integration/snapshots")) {
        let name = file.file_name().unwrap().to_str().unwrap();
        let test = name
            .strip_prefix("integration__snapshots__")
            .and_then(|name| name.strip_suffix(".snap"));
        let test =
            test.unwrap_or_else(|| panic!("{name} is not a snapshot; is it a rejected change?"));
        assert!(
            tests.contains(&format!("fn {test}(")),
            "no test compares {name}"
        );
    }
}
