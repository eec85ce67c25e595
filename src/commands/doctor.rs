//! `groundling doctor`: finds problems in the setup of Label Studio and groundling.

use std::fmt::Display;
use std::fs;
use std::path::Path;

use anyhow::bail;

use super::progress::mebibytes;
use super::{print, progress, road};
use crate::config::{DoctorArgs, RoadArgs};
use crate::label_studio::api::{Api, ApiError, Backend, Project};
use crate::label_studio::{LabelStudio, TokenKind};
use crate::labeling::{ImageTag, LabelingConfig};
use crate::media::{Fetcher, ImageRequest};
use crate::memory_limit;
use crate::pipeline::Plan;
use crate::prompt::Prompt;
use crate::store::DiskStore;

/// Runs all checks, and prints each finding with its remedy.
///
/// # Errors
/// If there is a problem that must be fixed.
pub fn run(args: DoctorArgs) -> anyhow::Result<()> {
    let mut findings = Findings::default();
    let runtime = road::runtime()?;
    runtime.block_on(label_studio(&args, &mut findings));
    models(&args, &mut findings);
    memory_file(&args.road.models.model_dir, &mut findings);
    store(&args.road, &mut findings);
    print(SWITCHES);
    match findings.bad {
        0 => {
            print("\nnothing is in the way");
            Ok(())
        }
        bad => bail!("{bad} of the findings above must be changed"),
    }
}

const SWITCHES: &str = "
Label Studio's own switches, set where it is started (groundling cannot see them):
  ML_BLOCK_LOCAL_IP=false            if groundling has a private address, as on the same machine or in a Docker network
  SSRF_PROTECTION_ENABLED=false      for webhooks to such an address; nothing else needs it
  LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true, LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=/folder
                                     for local files, with a local storage in the project for their folder";

/// Prints findings and counts the problems.
#[derive(Debug, Default)]
struct Findings {
    bad: usize,
}

impl Findings {
    fn good(&mut self, what: impl Display) {
        print(format_args!("  ok  {what}"));
    }

    /// Prints a finding that may cause problems.
    fn odd(&mut self, what: impl Display) {
        print(format_args!("note  {what}"));
    }

    fn bad(&mut self, what: impl Display) {
        self.bad += 1;
        print(format_args!("FAIL  {what}"));
    }
}

async fn label_studio(args: &DoctorArgs, findings: &mut Findings) {
    let studio = match road::label_studio(&args.road.media) {
        Ok(studio) => studio,
        Err(error) => return findings.bad(format!("{error:#}")),
    };
    if studio.base().is_none() {
        return findings.bad("LABEL_STUDIO_HOST is not set: it is Label Studio's address as this machine reaches it, such as http://localhost:8080");
    }
    let (api, fetcher) = match (
        Api::new(studio.clone()),
        road::fetcher(&args.road.media, args.road.store.request_bytes),
    ) {
        (Ok(api), Ok(fetcher)) => (api, fetcher),
        (Err(error), _) => return findings.bad(error),
        (_, Err(error)) => return findings.bad(error),
    };
    let base = studio.base().unwrap_or_default();
    match LabelStudio::new(Some(base), None).map(Api::new) {
        Ok(Ok(unsigned)) => match unsigned.version().await {
            Ok(version) => findings.good(format!("Label Studio {version} at {base}")),
            Err(error @ ApiError::Unreachable { .. }) => return findings.bad(error),
            Err(error) => {
                return findings.bad(format!(
                    "{base} does not answer as Label Studio: {error} (LABEL_STUDIO_HOST)"
                ));
            }
        },
        _ => return findings.bad(format!("{base} cannot be asked")),
    }
    let Some(kind) = studio.credentials().map(|credentials| credentials.kind()) else {
        return findings.bad(studio.refusal_hint());
    };
    match api.whoami().await {
        Ok(user) => findings.good(format!(
            "LABEL_STUDIO_ACCESS_TOKEN is {} of {}",
            kind.describe(),
            user.email
        )),
        Err(error) => return findings.bad(error),
    }
    match api.may_store_predictions().await {
        Ok(()) => findings.good("its owner may store predictions, as annotate does"),
        Err(error) => findings.bad(format!("its owner may not store predictions: {error}")),
    }
    match kind {
        TokenKind::Legacy => findings.odd("legacy tokens stop working when the organisation switches them off; a personal access token does not"),
        TokenKind::Access => findings.odd("this token lives for five minutes: use a personal access token (Account & Settings)"),
        TokenKind::Personal => {}
    }
    match args.project {
        Some(id) => match api.project(id).await {
            Ok(found) => project(&api, &studio, &fetcher, &found, findings).await,
            Err(ApiError::Status { status: 404, .. }) => {
                findings.bad(format!(
                    "there is no project {id}, or {} may not see it",
                    kind.describe()
                ));
            }
            Err(error) => findings.bad(error),
        },
        None => findings
            .odd("--project N looks at a project too: its labeling config, an image, its backends"),
    }
}

async fn project(
    api: &Api,
    studio: &LabelStudio,
    fetcher: &Fetcher,
    project: &Project,
    findings: &mut Findings,
) {
    let name = format!("project {} {:?}", project.id, project.title);
    match LabelingConfig::parse(&project.label_config) {
        Ok(config) => {
            labeling_config(&name, &config, findings);
            if let Ok(image) = config.image() {
                an_image(api, studio, fetcher, project.id, image, findings).await;
            }
        }
        Err(error) => findings.bad(format!("{name}: {error}")),
    }
    match api.backends(project.id).await {
        Ok(backends) if backends.is_empty() => findings.odd(format!(
            "{name} has no backend connected: Settings > Model > Connect Model, http://...:9090, with interactive preannotations on"
        )),
        Ok(backends) => backends.iter().for_each(|backend| connected(backend, findings)),
        Err(error) => findings.bad(error),
    }
}

fn labeling_config(name: &str, config: &LabelingConfig, findings: &mut Findings) {
    let Ok(image) = config.image() else { return };
    let controls: Vec<String> = config
        .region_controls(image)
        .map(|c| format!("{} {:?}", c.shape.kind(), c.control.name))
        .collect();
    if controls.is_empty() {
        return findings.bad(format!(
            "{name}: its labeling config has no <RectangleLabels>, <BrushLabels> or <PolygonLabels> for the image {:?}",
            image.name
        ));
    }
    let labels: Vec<&str> = config.labels(image).iter().map(|l| l.name()).collect();
    findings.good(format!(
        "{name}: results go to {}; labels: {}",
        controls.join(", "),
        labels.join(", ")
    ));
    match config.text_area(image) {
        Ok(area) => findings.good(format!("prompts are typed into {:?}", area.name)),
        Err(error) => findings.odd(format!(
            "{error}; without it only batches and smart tools work"
        )),
    }
}

/// Fetches the image of the project's first task.
async fn an_image(
    api: &Api,
    studio: &LabelStudio,
    fetcher: &Fetcher,
    project: u64,
    image: &ImageTag,
    findings: &mut Findings,
) {
    let tasks = match api.tasks(project, 1, 1).await {
        Ok(page) => page.tasks,
        Err(error) => return findings.bad(error),
    };
    let Some(task) = tasks.first() else {
        return findings.odd("the project has no tasks, so no image could be fetched");
    };
    let url = match image.url(&task.data) {
        Ok(url) => url,
        Err(error) => return findings.bad(format!("task {}: {error}", task.id)),
    };
    let request = ImageRequest {
        value: &url,
        label_studio: studio,
        task: Some(task.id),
        login: None,
    };
    match fetcher.load(request).await {
        Ok(image) => findings.good(format!(
            "the image of task {} can be fetched: {}x{} pixels",
            task.id,
            image.width(),
            image.height()
        )),
        Err(error) => {
            let hint = if url.contains("/local-files") {
                "; for local files see the switches below"
            } else {
                ""
            };
            findings.bad(format!(
                "the image of task {} cannot be had: {error}{hint}",
                task.id
            ));
        }
    }
}

fn connected(backend: &Backend, findings: &mut Findings) {
    let name = format!("backend {:?} at {}", backend.title, backend.url);
    if backend.readable_state != "Connected" {
        let reason = backend.error_message.as_deref().unwrap_or_default();
        let reason = reason.lines().last().unwrap_or_default();
        return findings.bad(format!(
            "{name} is {:?} to Label Studio {reason}: is groundling running there, does that address reach it from Label Studio's machine, and if it is private, is ML_BLOCK_LOCAL_IP=false set?",
            backend.readable_state
        ));
    }
    findings.good(format!("{name} is connected"));
    if !backend.is_interactive {
        findings.odd(format!("{name} has interactive preannotations off: typed prompts and smart tools do not reach it"));
    }
}

/// Loads the models and runs them once.
fn models(args: &DoctorArgs, findings: &mut Findings) {
    let free = available_memory();
    let plan = Plan::new(&args.road.models);
    let choice = plan.choice().clone();
    let names = format!(
        "detector {:?}, segmenter {:?}",
        choice.detector, choice.segmenter
    );
    // a check must not download hundreds of megabytes
    let missing = plan.missing();
    if !missing.is_empty() {
        return findings.bad(format!(
            "not on this machine: {}. `groundling download {}` fetches what can be fetched; serve does that when it starts",
            missing.join(", "),
            missing.join(" ")
        ));
    }
    let models = match plan.load(&progress::shown()) {
        Ok(models) => models,
        Err(error) => return findings.bad(error),
    };
    let grey = image::RgbImage::from_pixel(640, 480, image::Rgb([128; 3]));
    let options = args.road.detection.options();
    let predicted = Prompt::parse("thing")
        .map_err(anyhow::Error::from)
        .and_then(|prompt| Ok(models.predict(&grey, &prompt, &options)?));
    match predicted {
        Ok((_, times)) => findings.good(format!(
            "{names} on {}: an image of 640x480 takes the detector {} ms",
            models.device(),
            times.detector.as_millis()
        )),
        Err(error) => findings.bad(format!("{names}: {error}")),
    }
    if choice.has_demo() {
        findings.odd("the demo models know coloured shapes only (DETECTOR, SEGMENTER)");
    }
    if let (Some(before), Some(after)) = (free, available_memory()) {
        let taken = before.saturating_sub(after);
        let line = format!(
            "{} MiB of memory are free, the models took about {}",
            after >> 20,
            taken >> 20
        );
        match after > SPARE_MEMORY {
            true => findings.good(line),
            false => findings.odd(format!("{line}: large images may not fit")),
        }
    }
}

/// Checks the caches in memory and on disk.
fn store(args: &RoadArgs, findings: &mut Findings) {
    let limit = match memory_limit::bytes() {
        Some(bytes) => format!("this process may use {}", mebibytes(bytes)),
        None => "the system does not say how much memory there is".to_owned(),
    };
    findings.good(format!(
        "results are kept for the next request in up to {} of memory (CACHE_BYTES); {limit}",
        mebibytes(args.store.memory_bytes())
    ));
    if args.store.warm_bytes == 0 {
        return findings.odd("no image embeddings are kept on disk (WARM_BYTES=0)");
    }
    let folder = args.store.embeddings(&args.models.model_dir);
    // with no limit, so that this check deletes nothing
    let disk = DiskStore::new(folder, u64::MAX);
    disk.scan_and_evict();
    let usage = disk.usage();
    findings.good(format!(
        "{} image embeddings in {} of {} on disk (WARM_BYTES), in {} (CACHE_DIR)",
        usage.entries,
        mebibytes(usage.bytes),
        mebibytes(args.store.warm_bytes),
        disk.folder().display()
    ));
}

/// Memory for large images and long prompts, in addition to the weights, in bytes.
const SPARE_MEMORY: u64 = 3 << 29;

/// Available memory in bytes; `None` if the system does not report it.
fn available_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find(|line| line.starts_with("MemAvailable:"))?;
    let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kibibytes << 10)
}

/// Checks whether prompts can be remembered.
fn memory_file(folder: &Path, findings: &mut Findings) {
    let existing = folder.ancestors().find(|folder| folder.exists());
    let existing = existing.unwrap_or(Path::new("."));
    let probe = existing.join(format!(".groundling-{}", std::process::id()));
    match fs::write(&probe, "") {
        Ok(()) => {
            // an empty file that cannot be removed does no harm
            let _ = fs::remove_file(&probe);
            findings.good(format!(
                "prompts are remembered in {} (MODEL_DIR)",
                folder.display()
            ));
        }
        Err(error) => findings.odd(format!(
            "prompts are forgotten at a restart: {} cannot be written: {error} (MODEL_DIR)",
            existing.display()
        )),
    }
}
