//! The dashboard, the alert rules and the table of metrics in `deploy/` use exactly the metrics of a server.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use axum::body::Body;
use axum::http::Request;
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;

use crate::support::{
    SHAPES, SHAPES_CONFIG, app_with, data_uri, files_below, post, prompt_request, repository,
};

/// A metric of `/metrics`.
#[derive(Debug, Default)]
pub struct Metric {
    pub kind: String,
    pub help: String,
    /// The names of its samples.
    samples: BTreeSet<String>,
    pub labels: BTreeSet<String>,
    /// The values of the labels that are the same for all requests.
    values: BTreeSet<String>,
    /// The upper bounds of a histogram's buckets, without the last bucket, which is unbounded.
    bounds: Vec<f64>,
}

impl Metric {
    /// The name in the table of metrics: for a counter the name of its sample, otherwise its own name.
    fn documented<'a>(&'a self, name: &'a str) -> &'a str {
        match self.kind.as_str() {
            "counter" => self.samples.first().map_or(name, String::as_str),
            _ => name,
        }
    }
}

/// The metrics of a server that has handled a request, by name.
pub async fn metrics() -> BTreeMap<String, Metric> {
    let app = app_with(&[]);
    let request = prompt_request(SHAPES_CONFIG, &data_uri(SHAPES), "red circle");
    post(&app, "/predict", &request).await;
    let request = Request::get("/metrics").body(Body::empty()).unwrap();
    let answer = app.oneshot(request).await.unwrap();
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    let mut metrics = BTreeMap::<String, Metric>::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|l| l.split_once(' ')) {
            metrics.entry(name.to_owned()).or_default().help = help.to_owned();
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            current = name.to_owned();
            metrics.entry(current.clone()).or_default().kind = kind.to_owned();
        }
        if line.starts_with('#') {
            continue;
        }
        let (sample, _) = line.rsplit_once(' ').unwrap();
        let (name, labels) = sample.split_once('{').unwrap_or((sample, ""));
        let metric = metrics.get_mut(&current).unwrap();
        metric.samples.insert(name.to_owned());
        let labels = labels.trim_end_matches('}').split(',');
        for (key, value) in labels.filter_map(|label| label.split_once('=')) {
            match (key, value.trim_matches('"')) {
                ("le", "+Inf") => {}
                ("le", bound) => metric.bounds.push(bound.parse().unwrap()),
                (key, value) => {
                    metric.labels.insert(key.to_owned());
                    if ["stage", "urgency"].contains(&key) {
                        metric.values.insert(value.to_owned());
                    }
                }
            }
        }
    }
    for metric in metrics.values_mut() {
        metric.bounds.dedup();
    }
    metrics
}

/// The names of metrics in a text.
fn names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words
        .filter(|word| word.starts_with("groundling_"))
        .collect()
}

/// The rows of a Markdown table whose first cell is a metric: the name of the metric, and the cells.
fn rows(text: &str) -> Vec<(&str, Vec<&str>)> {
    let rows = text.lines().filter_map(|line| {
        let rest = line.strip_prefix("| `groundling_")?;
        let name = &line[3..3 + "groundling_".len() + rest.find('`')?];
        let cells = line.trim_matches('|').split('|').map(str::trim);
        Some((name, cells.collect()))
    });
    rows.collect()
}

#[tokio::test]
async fn every_metric_in_deploy_exists() {
    let metrics = metrics().await;
    let samples: BTreeSet<&str> = metrics
        .values()
        .flat_map(|metric| metric.samples.iter().map(String::as_str))
        .collect();
    assert!(samples.len() > 15, "{samples:?}");
    let mut used = 0;
    for file in files_below(&repository("deploy")) {
        let text = fs::read_to_string(&file).unwrap();
        let is_table = file.extension().is_some_and(|kind| kind == "md");
        for name in names(&text) {
            // the table also has the names of histograms, which are not names of samples
            let is_known = samples.contains(name) || is_table && metrics.contains_key(name);
            assert!(
                is_known,
                "{}: the server has no metric {name}",
                file.display()
            );
            used += 1;
        }
    }
    assert!(used > 20, "only {used} names of metrics in deploy/");
}

#[tokio::test]
async fn every_metric_is_documented_with_its_type_labels_and_buckets() {
    let metrics = metrics().await;
    let text = fs::read_to_string(repository("deploy/README.md")).unwrap();
    let rows = rows(&text);
    for (name, metric) in &metrics {
        let documented = metric.documented(name);
        let metric_rows = rows.iter().filter(|(name, _)| *name == documented);
        let mut metric_rows = metric_rows.map(|(_, cells)| cells);
        let row = metric_rows.next();
        let row = row.unwrap_or_else(|| panic!("deploy/README.md does not document {documented}"));
        assert_eq!(row[1], metric.kind, "{documented}");
        let labels = row[2]
            .split(',')
            .map(|label| label.trim().trim_matches('`'));
        let labels: BTreeSet<&str> = labels.filter(|label| !label.is_empty()).collect();
        let expected: BTreeSet<&str> = metric.labels.iter().map(String::as_str).collect();
        assert_eq!(labels, expected, "{documented}");
        for value in &metric.values {
            assert!(
                text.contains(&format!("`{value}`")),
                "deploy/README.md does not name the value {value} of {documented}"
            );
        }
        if metric.kind == "histogram" {
            let buckets = metric_rows.next();
            let buckets = buckets
                .unwrap_or_else(|| panic!("deploy/README.md has no buckets of {documented}"));
            let bounds: Vec<f64> = buckets[1].split(", ").map(|b| b.parse().unwrap()).collect();
            assert_eq!(bounds, metric.bounds, "{documented}");
        }
    }
}

#[test]
fn the_dashboard_has_valid_panels_with_queries_of_metrics() {
    let text = fs::read_to_string(repository("deploy/grafana-dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    assert!(dashboard["schemaVersion"].is_u64() && dashboard["title"] == "groundling");
    let panels = dashboard["panels"].as_array().unwrap();
    let mut ids = BTreeSet::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        let title = panel["title"].as_str().unwrap();
        let position = &panel["gridPos"];
        let end = position["x"].as_u64().unwrap() + position["w"].as_u64().unwrap();
        assert!(end <= 24, "{title} is wider than the dashboard: {position}");
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{title} has no query");
        for target in targets {
            let expression = target["expr"].as_str().unwrap();
            assert!(!names(expression).is_empty(), "{title}: {expression}");
            let datasource = &target["datasource"]["uid"];
            assert_eq!(datasource, "${datasource}", "{title}");
        }
    }
}
