//! Writes the best thresholds into the project.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use serde_json::{Map, Value};

use super::Compared;
use super::summary::Summary;
use crate::commands::{print_result, setup};
use crate::config::{ApplyTo, EvaluateArgs};
use crate::label_studio::api::Api;
use crate::labeling::with_thresholds;

/// Writes the best thresholds where `to` says. Labels of which nothing was found keep theirs.
///
/// # Errors
/// If there is nothing to write, or Label Studio rejects it.
pub(super) fn apply(
    args: &EvaluateArgs,
    to: ApplyTo,
    compared: &Compared,
    summary: &Summary,
) -> anyhow::Result<()> {
    let label_studio = setup::label_studio(&args.media.label_studio)?;
    let api = Api::new(label_studio)?;
    let project = args.project.unwrap_or_default();
    let runtime = setup::runtime()?;
    match to {
        ApplyTo::Labels => {
            let mut thresholds = summary.best_thresholds();
            thresholds.retain(|label, _| compared.thresholds.contains_key(label));
            if thresholds.is_empty() {
                bail!("no label has a best threshold, so nothing was written");
            }
            runtime.block_on(to_labels(&api, project, &thresholds))
        }
        ApplyTo::ExtraParams => {
            let best = summary
                .best_threshold
                .context("nothing that was found is correct, so nothing was written")?;
            runtime.block_on(to_extra_params(&api, project, best.threshold))
        }
    }
}

async fn to_labels(
    api: &Api,
    project: u64,
    thresholds: &BTreeMap<String, f32>,
) -> anyhow::Result<()> {
    let config = api.project(project).await?.label_config;
    let changed = with_thresholds(&config, thresholds)?;
    api.set_label_config(project, &changed)
        .await
        .context("the labeling config was not changed")?;
    let list: Vec<String> = thresholds
        .iter()
        .map(|(label, threshold)| format!("{label} {threshold}"))
        .collect();
    print_result(format_args!(
        "score_threshold was written into the labeling config of project {project}: {}",
        list.join(", ")
    ));
    for backend in api.backends(project).await? {
        if extra_params(&backend.extra_params).contains_key("box_threshold") {
            print_result(format_args!(
                "note: the extra params of the backend {:?} have a box_threshold, which applies to all labels and hides these thresholds: remove it there",
                backend.title
            ));
        }
    }
    Ok(())
}

async fn to_extra_params(api: &Api, project: u64, threshold: f32) -> anyhow::Result<()> {
    let backends = api.backends(project).await?;
    let Some(backend) = backends.first() else {
        bail!(
            "project {project} has no backend whose extra params could be changed: connect one with `groundling connect --project {project}`"
        );
    };
    let mut params = extra_params(&backend.extra_params);
    // the shortest digits of the 32-bit number, and not those of a 64-bit one
    let digits = threshold
        .to_string()
        .parse()
        .unwrap_or(f64::from(threshold));
    params.insert("box_threshold".to_owned(), digits.into());
    api.set_extra_params(project, backend, &Value::Object(params))
        .await
        .context("the extra params were not changed")?;
    print_result(format_args!(
        "box_threshold {threshold} was written into the extra params of the backend {:?}",
        backend.title
    ));
    Ok(())
}

/// The *extra params* of a backend, which may be an object or its text.
fn extra_params(value: &Value) -> Map<String, Value> {
    match value {
        Value::Object(params) => params.clone(),
        Value::String(text) => serde_json::from_str(text).unwrap_or_default(),
        _ => Map::new(),
    }
}
