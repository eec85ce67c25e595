//! `groundling doctor`: finds problems in the setup of Label Studio and groundling.

use std::fmt::Display;
use std::fs;
use std::path::Path;

use anyhow::bail;

use super::progress::mebibytes;
use super::{print_result, progress, setup};
use crate::config::{DoctorArgs, SetupArgs};
use crate::findings::{Finding, Findings, Severity};
use crate::label_studio::api::{Api, ApiError, Backend, Project};
use crate::label_studio::{LabelStudio, TokenKind};
use crate::labeling::{ImageTag, LabelingConfig};
use crate::media::{Fetcher, ImageRequest};
use crate::memory_limit;
use crate::outgoing::error_chain;
use crate::pipeline::{ModelLoader, Models, Query};
use crate::prompt::Prompt;
use crate::store::DiskStore;

/// Runs all checks, and prints each finding with its remedy.
///
/// # Errors
/// If there is a problem that must be fixed.
pub fn run(args: DoctorArgs) -> anyhow::Result<()> {
    let mut findings = Printed::default();
    let runtime = setup::runtime()?;
    runtime.block_on(label_studio(&args, &mut findings));
    let loader = ModelLoader::new(args.setup.models.settings());
    models(&args, &loader, &mut findings);
    prompts(&args.setup, &mut findings);
    store(&args.setup, &loader, &mut findings);
    print_result(LABEL_STUDIO_SETTINGS);
    let model_dir = &args.setup.models.model_dir;
    let problems = findings.count(Severity::Fail);
    if let Err(error) = Findings::new(args.project, findings.0).store(model_dir) {
        tracing::warn!(
            "the findings cannot be stored in {}: {error}",
            model_dir.display()
        );
    }
    match problems {
        0 => {
            print_result("\nno problems found");
            Ok(())
        }
        problems => bail!("{problems} problems found, marked with FAIL above"),
    }
}

const LABEL_STUDIO_SETTINGS: &str = "
Settings of the Label Studio server that groundling cannot check (environment variables of its process):
  ML_BLOCK_LOCAL_IP=false            needed if groundling has a private address, for example on the same machine or in a
                                     Docker network
  SSRF_PROTECTION_ENABLED=false      needed to connect such an address in Label Studio's pages without an error: it adds a
                                     webhook to each model, which groundling does not need
  LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true, LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=/folder
                                     needed for local files, together with a local storage for their folder in the project";

/// The findings so far; each is printed at once.
#[derive(Debug, Default)]
struct Printed(Vec<Finding>);

impl Printed {
    fn ok(&mut self, finding: impl Display) {
        self.add(Severity::Ok, finding);
    }

    fn note(&mut self, finding: impl Display) {
        self.add(Severity::Note, finding);
    }

    fn fail(&mut self, finding: impl Display) {
        self.add(Severity::Fail, finding);
    }

    fn add(&mut self, severity: Severity, finding: impl Display) {
        let mark = match severity {
            Severity::Ok => "  ok",
            Severity::Note => "note",
            Severity::Fail => "FAIL",
        };
        print_result(format_args!("{mark}  {finding}"));
        let text = finding.to_string();
        self.0.push(Finding { severity, text });
    }

    fn count(&self, severity: Severity) -> usize {
        let counted = self.0.iter().filter(|finding| finding.severity == severity);
        counted.count()
    }
}

async fn label_studio(args: &DoctorArgs, findings: &mut Printed) {
    let studio = match setup::label_studio(&args.setup.media.label_studio) {
        Ok(studio) => studio,
        Err(error) => return findings.fail(format!("{error:#}")),
    };
    if studio.base().is_none() {
        return findings.fail("LABEL_STUDIO_HOST is not set; set it to Label Studio's address as seen from this machine, such as http://localhost:8080");
    }
    let (api, fetcher) = match (
        Api::new(studio.clone()),
        setup::fetcher(&args.setup.media, args.setup.store.request_bytes),
    ) {
        (Ok(api), Ok(fetcher)) => (api, fetcher),
        (Err(error), _) => return findings.fail(error_chain(&error)),
        (_, Err(error)) => return findings.fail(format!("{error:#}")),
    };
    let base = studio.base().unwrap_or_default();
    match LabelStudio::new(Some(base), None).map(Api::new) {
        Ok(Ok(unsigned)) => match unsigned.version().await {
            Ok(version) => findings.ok(format!("Label Studio {version} at {base}")),
            Err(error @ ApiError::Unreachable { .. }) => return findings.fail(error),
            Err(error) => {
                return findings.fail(format!(
                    "the server at {base} (LABEL_STUDIO_HOST) does not answer like Label Studio: {error}"
                ));
            }
        },
        _ => {
            return findings.fail(format!(
                "no request can be sent to {base} (LABEL_STUDIO_HOST)"
            ));
        }
    }
    let Some(kind) = studio.credentials().map(|credentials| credentials.kind()) else {
        return findings.fail(studio.refusal_hint());
    };
    match api.whoami().await {
        Ok(user) => findings.ok(format!(
            "LABEL_STUDIO_ACCESS_TOKEN is {} of {}",
            kind.describe(),
            user.email
        )),
        Err(error) => return findings.fail(error),
    }
    match api.may_store_predictions().await {
        Ok(()) => findings.ok("its owner may store predictions, which `groundling annotate` needs"),
        Err(error) => findings.fail(format!(
            "its owner may not store predictions, which `groundling annotate` needs: {error}"
        )),
    }
    match kind {
        TokenKind::Legacy => findings.note("this is a legacy token: it stops working when the organisation disables legacy tokens; a personal access token does not"),
        TokenKind::Access => findings.note("this is a short-lived access token that expires within five minutes: use a personal access token (Account & Settings)"),
        TokenKind::Personal => {}
    }
    match args.project {
        Some(id) => match api.project(id).await {
            Ok(found) => project(&api, &studio, &fetcher, &found, findings).await,
            Err(ApiError::Status { status: 404, .. }) => {
                findings.fail(format!(
                    "there is no project {id}, or the owner of {} has no access to it",
                    kind.describe()
                ));
            }
            Err(error) => findings.fail(error),
        },
        None => findings
            .note("no project was checked: --project N checks its labeling config, one of its images and its backends"),
    }
}

async fn project(
    api: &Api,
    studio: &LabelStudio,
    fetcher: &Fetcher,
    project: &Project,
    findings: &mut Printed,
) {
    let name = format!("project {} {:?}", project.id, project.title);
    match LabelingConfig::parse(&project.label_config) {
        Ok(config) => {
            labeling_config(&name, &config, findings);
            if let Ok(image) = config.image() {
                first_image(api, studio, fetcher, project.id, image, findings).await;
            }
        }
        Err(error) => findings.fail(format!("{name}: {error}")),
    }
    match api.backends(project.id).await {
        Ok(backends) if backends.is_empty() => findings.note(format!(
            "{name} has no backend connected: Settings > Model > Connect Model, http://...:9090, with interactive preannotations on"
        )),
        Ok(backends) => backends.iter().for_each(|backend| check_backend(backend, findings)),
        Err(error) => findings.fail(error),
    }
}

fn labeling_config(name: &str, config: &LabelingConfig, findings: &mut Printed) {
    let Ok(image) = config.image() else { return };
    let controls: Vec<String> = config
        .region_controls(image)
        .map(|c| format!("{} {:?}", c.shape.kind(), c.control.name))
        .collect();
    if controls.is_empty() {
        return findings.fail(format!(
            "{name}: the labeling config has no <RectangleLabels>, <BrushLabels>, <BitmaskLabels>, <PolygonLabels> or <VectorLabels> for the image {:?}",
            image.name
        ));
    }
    let mut labels: Vec<&str> = config.labels(image).iter().map(|l| l.name()).collect();
    if config.has_task_labels() {
        labels.push("those in the data of each task");
    }
    findings.ok(format!(
        "{name}: regions are created with {}; labels: {}",
        controls.join(", "),
        labels.join(", ")
    ));
    special_controls(config, image, findings);
    match config.text_area(image) {
        Ok(area) => findings.ok(format!(
            "prompts are read from the text area {:?}",
            area.name
        )),
        Err(error) => findings.note(format!(
            "{error}; without it only batches and smart tools work"
        )),
    }
}

/// Reports controls that change how an image is searched, and what annotators are told.
fn special_controls(config: &LabelingConfig, image: &ImageTag, findings: &mut Printed) {
    for control in config.regions_of_interest(image) {
        findings.ok(format!(
            "rectangles of {:?} limit the search to a region of interest",
            control.name
        ));
    }
    if let Some(area) = config.status_area() {
        findings.ok(format!(
            "annotators read what was found, or what is wrong, in {:?}",
            area.name
        ));
    }
}

/// Fetches the image of the project's first task.
async fn first_image(
    api: &Api,
    studio: &LabelStudio,
    fetcher: &Fetcher,
    project: u64,
    image: &ImageTag,
    findings: &mut Printed,
) {
    let tasks = match api.tasks(project, 1, 1).await {
        Ok(page) => page.tasks,
        Err(error) => return findings.fail(error),
    };
    let Some(task) = tasks.first() else {
        return findings.note("the project has no tasks, so no image was fetched");
    };
    let url = match image.pages(&task.data) {
        Ok(pages) => pages.into_iter().next().map(|page| page.url),
        Err(error) => return findings.fail(format!("task {}: {error}", task.id)),
    };
    let url = url.unwrap_or_default();
    let request = ImageRequest {
        value: &url,
        label_studio: studio,
        task: Some(task.id),
        login: None,
    };
    match fetcher.load(request).await {
        Ok(image) => findings.ok(format!(
            "the image of task {} can be fetched: {}x{} pixels",
            task.id,
            image.width(),
            image.height()
        )),
        Err(error) => {
            let hint = if url.contains("/local-files") {
                "; for local files, check the settings below"
            } else {
                ""
            };
            findings.fail(format!(
                "the image of task {} cannot be fetched: {error}{hint}",
                task.id
            ));
        }
    }
}

fn check_backend(backend: &Backend, findings: &mut Printed) {
    let name = format!("backend {:?} at {}", backend.title, backend.url);
    if backend.readable_state != "Connected" {
        let reason = backend.error_message.as_deref().unwrap_or_default();
        let reason = reason.lines().last().unwrap_or_default();
        return findings.fail(format!(
            "Label Studio reports {name} as {:?} {reason}: check that groundling runs there, that Label Studio's machine can reach the address, and that ML_BLOCK_LOCAL_IP=false is set if the address is private",
            backend.readable_state
        ));
    }
    findings.ok(format!("{name} is connected"));
    if !backend.is_interactive {
        findings.note(format!("{name} has interactive preannotations switched off, so Label Studio sends it no prompts and no smart tools"));
    }
}

/// Loads the models and runs them once.
fn models(args: &DoctorArgs, loader: &ModelLoader, findings: &mut Printed) {
    let free = available_memory();
    let chosen = loader.names().clone();
    let names = format!(
        "detector {:?}, segmenter {:?}",
        chosen.detector, chosen.segmenter
    );
    // a check must not download hundreds of megabytes
    let missing = loader.missing();
    if !missing.is_empty() {
        return findings.fail(format!(
            "not on this machine: {}. Download them with `groundling download {}`; `groundling serve` also downloads them when it starts",
            missing.join(", "),
            missing.join(" ")
        ));
    }
    let models = match loader.load(&progress::to_terminal()) {
        Ok(models) => models,
        Err(error) => return findings.fail(error),
    };
    if chosen.has_detector() {
        try_detector(args, &models, loader, &names, findings);
    } else {
        findings.ok(format!("{names} on {}", models.device()));
        findings.note("DETECTOR=none: prompts and batches are refused, and only objects that annotators mark are segmented");
    }
    if args.setup.models.detector.is_none() && args.setup.models.segmenter.is_none() {
        findings.note(
            "DETECTOR and SEGMENTER are not set, so the default models run; for a new project, `groundling models --recommend` suggests more accurate ones that are as fast",
        );
    }
    if chosen.has_demo() {
        findings.note("the demo models detect only coloured shapes; set DETECTOR and SEGMENTER for real images");
    }
    if let (Some(before), Some(after)) = (free, available_memory()) {
        let taken = before.saturating_sub(after);
        let line = format!(
            "{} MiB of memory are free; the models take about {}",
            after >> 20,
            taken >> 20
        );
        match after > MIN_FREE_MEMORY {
            true => findings.ok(line),
            false => findings.note(format!("{line}: large images may not fit")),
        }
    }
}

/// Searches for something once.
fn try_detector(
    args: &DoctorArgs,
    models: &Models,
    loader: &ModelLoader,
    names: &str,
    findings: &mut Printed,
) {
    let grey = image::RgbImage::from_pixel(640, 480, image::Rgb([128; 3]));
    let settings = args.setup.detection.settings(&loader.names().detector);
    let options = settings.options;
    let predicted = Prompt::parse("thing")
        .map_err(anyhow::Error::from)
        .and_then(|prompt| Ok(models.predict(&grey, &Query::new(prompt, options))?));
    match predicted {
        Ok((_, times)) => findings.ok(format!(
            "{names} on {}: the detector takes {} ms for an image of 640x480 pixels",
            models.device(),
            times.detector.as_millis()
        )),
        Err(error) => findings.fail(format!("{names}: {error}")),
    }
}

/// Checks the caches in memory and on disk.
fn store(args: &SetupArgs, loader: &ModelLoader, findings: &mut Printed) {
    let limit = match memory_limit::bytes() {
        Some(bytes) => format!("the process may use {} in total", mebibytes(bytes)),
        None => "the system does not report its memory".to_owned(),
    };
    findings.ok(format!(
        "results are cached in up to {} of memory (CACHE_BYTES); {limit}",
        mebibytes(setup::cache_bytes(&args.store, loader))
    ));
    if args.store.warm_bytes == 0 {
        return findings.note("image embeddings are not stored on disk (WARM_BYTES=0)");
    }
    let folder = args.store.embeddings(&args.models.model_dir);
    // with no limit, so that this check deletes nothing
    let disk = DiskStore::new(folder, u64::MAX);
    disk.scan_and_evict();
    let usage = disk.usage();
    findings.ok(format!(
        "{} image embeddings are stored in {} of {} (WARM_BYTES), in the folder {} (CACHE_DIR)",
        usage.entries,
        mebibytes(usage.bytes),
        mebibytes(args.store.warm_bytes),
        disk.folder().display()
    ));
}

/// Memory for large images and long prompts, in addition to the weights, in bytes.
const MIN_FREE_MEMORY: u64 = 3 << 29;

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
fn prompts(args: &SetupArgs, findings: &mut Printed) {
    let folder = &args.models.model_dir;
    if args.store.database_url.is_none() {
        return prompt_file(folder, findings);
    }
    match setup::remembered_projects(&args.store, folder) {
        Ok(_) => findings.ok("prompts are remembered in the database of DATABASE_URL"),
        Err(error) => findings.fail(format!(
            "prompts are lost at a restart, and are not shared with other servers: {error:#}"
        )),
    }
}

/// Checks whether the file of prompts can be written.
fn prompt_file(folder: &Path, findings: &mut Printed) {
    let existing = folder.ancestors().find(|folder| folder.exists());
    let existing = existing.unwrap_or(Path::new("."));
    let probe = existing.join(format!(".groundling-{}", std::process::id()));
    match fs::write(&probe, "") {
        Ok(()) => {
            // an empty file that cannot be removed does no harm
            let _ = fs::remove_file(&probe);
            findings.ok(format!(
                "prompts are remembered in the folder {} (MODEL_DIR)",
                folder.display()
            ));
        }
        Err(error) => findings.note(format!(
            "prompts are lost at a restart, because the folder {} (MODEL_DIR) is not writable: {error}",
            existing.display()
        )),
    }
}
