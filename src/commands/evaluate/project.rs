//! The tasks and annotations of a Label Studio project.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, bail};
use futures_util::{StreamExt, stream};
use serde_json::Value;
use tracing::Instrument;

use super::html::thumbnail;
use super::{Compared, ComparedImage, Comparison, report_failure};
use crate::commands::project::{
    Access, CONCURRENT_TASKS, Pages, Progress, until_interrupted, wait_for_models,
};
use crate::commands::{print_status, setup};
use crate::config::{EvaluateArgs, SetupArgs, TypedPrompts};
use crate::evaluation::{
    CocoBox, CocoCategory, FoundObject, LabeledShape, Outline, TrueObject, labeled_shapes,
};
use crate::label_studio::LabelStudio;
use crate::label_studio::api::{StoredAnnotation, StoredTask};
use crate::labeling::ImageTag;
use crate::media::{Fetcher, ImageRequest};
use crate::pipeline::ModelLoader;
use crate::pipeline::scheduler::Urgency;
use crate::preannotation::{BatchPlan, Preannotator, Task};

/// Predicts the annotated tasks of a project.
///
/// # Errors
/// If Label Studio or the models cannot be used, or no task is annotated.
pub(super) fn compare(args: &EvaluateArgs, setup: SetupArgs) -> anyhow::Result<Compared> {
    setup::runtime()?.block_on(compare_async(args, setup))
}

async fn compare_async(args: &EvaluateArgs, setup: SetupArgs) -> anyhow::Result<Compared> {
    let number = args.project.unwrap_or_default();
    let Access {
        api,
        config,
        projects,
        origin,
        ..
    } = Access::with_extra_params(&setup, number).await?;
    let label_studio = setup::label_studio(&setup.media.label_studio)?;
    let model_dir = setup.models.model_dir.clone();
    let fetcher = setup::fetcher(&setup.media, setup.store.request_bytes)?;
    let loader = ModelLoader::new(setup.models.settings());
    setup::require_detector(loader.names())?;
    let detector = loader.names().detector.clone();
    let image = config.image()?.clone();
    let preannotator =
        setup::preannotator(setup, projects, TypedPrompts::default(), CONCURRENT_TASKS)?;
    // the labels are compared, so the labels are searched for, whatever was typed last
    let prompt = args.prompt.as_deref().unwrap_or_default();
    let plan = preannotator.plan(origin, config.clone(), Some(prompt), Urgency::Batch)?;
    let lowest = args.lowest_score.0;
    let labels = config.labels(&image);
    let mut compared = Compared {
        models: plan.version().to_owned(),
        detector,
        prompt: plan
            .prompts()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(" and "),
        images: vec![],
        categories: (1..)
            .zip(&labels)
            .map(|(id, label)| CocoCategory {
                id,
                name: label.name().to_owned(),
            })
            .collect(),
        boxes: Comparison::default(),
        masks: None,
        thresholds: labels
            .iter()
            .map(|label| (label.name().to_owned(), plan.threshold_of(label.name())))
            .collect(),
        lowest,
        failures: vec![],
    };
    print_status(format_args!(
        "project {number}: searching for {}",
        compared.prompt
    ));
    wait_for_models(&preannotator).await?;
    let work = Work {
        preannotator,
        plan: plan.with_only_threshold(lowest),
        image,
        fetcher,
        label_studio,
        with_pictures: args.report.is_some(),
    };
    let mut progress = Progress::new(&model_dir, "evaluate", number);
    let run = async {
        let work = &work;
        let (mut pages, mut left) = (Pages::new(number, (0, 1)), args.limit.unwrap_or(usize::MAX));
        while let Some((tasks, total)) = pages.next(&api).await? {
            progress.set_total(total);
            let annotated = tasks.into_iter().filter(|task| truth(task).is_some());
            let annotated: Vec<StoredTask> = annotated.take(left).collect();
            left -= annotated.len();
            let tasks = annotated
                .iter()
                .map(|task| async move { (task, work.task(task).await) });
            let mut tasks = stream::iter(tasks).buffered(CONCURRENT_TASKS);
            while let Some((task, result)) = tasks.next().await {
                match result {
                    Ok(found) => found.add_to(&mut compared),
                    Err(error) => {
                        let (name, error) = (format!("task {}", task.id), format!("{error:#}"));
                        progress.fail(format!("{name}: {error}"));
                        report_failure(&mut compared.failures, name, error);
                    }
                }
                progress.step();
            }
            if left == 0 {
                break;
            }
        }
        Ok(())
    };
    until_interrupted(run).await?;
    progress.finish();
    if compared.images.is_empty() && compared.failures.is_empty() {
        bail!("project {number} has no submitted annotation to compare with");
    }
    if compared.images.is_empty() {
        bail!("no annotated task could be predicted");
    }
    Ok(compared)
}

/// The annotation that is taken for true: the ground truth, else the newest one that is not a skip.
fn truth(task: &StoredTask) -> Option<&StoredAnnotation> {
    let mut annotations = task.annotations.iter();
    let is_valid = |annotation: &&StoredAnnotation| !annotation.was_cancelled;
    let ground_truth = annotations
        .clone()
        .find(|annotation| annotation.ground_truth);
    ground_truth.filter(is_valid).or_else(|| {
        annotations
            .by_ref()
            .filter(is_valid)
            .max_by_key(|annotation| annotation.id)
    })
}

/// What is needed to predict a task.
struct Work {
    preannotator: Preannotator,
    plan: BatchPlan,
    image: ImageTag,
    fetcher: Fetcher,
    label_studio: LabelStudio,
    with_pictures: bool,
}

/// The shapes of a task.
struct TaskShapes {
    task: u64,
    truth: Vec<LabeledShape>,
    found: Vec<LabeledShape>,
    /// The pictures of its pages, with their numbers.
    pictures: HashMap<usize, Vec<u8>>,
    sizes: BTreeMap<usize, (usize, usize)>,
}

impl Work {
    async fn task(&self, task: &StoredTask) -> anyhow::Result<TaskShapes> {
        let annotation = truth(task).context("the task has no annotation")?;
        let regions: Vec<Value> = match &annotation.result {
            Some(result) => serde_json::from_str(result.get())?,
            None => vec![],
        };
        let read = |regions: &[Value]| {
            labeled_shapes(regions, &self.image.name).map_err(anyhow::Error::msg)
        };
        let truth = read(&regions)?;
        let wanted = Task {
            id: Some(task.id),
            data: task.data.clone(),
            regions: vec![],
        };
        let span = wanted.span();
        let predicted = self.preannotator.predict(&self.plan, &wanted);
        let prediction = predicted.instrument(span).await?;
        let regions: Vec<Value> = prediction
            .result
            .iter()
            .map(serde_json::to_value)
            .collect::<Result<_, _>>()?;
        let mut shapes = TaskShapes {
            task: task.id,
            found: read(&regions)?,
            truth,
            pictures: HashMap::new(),
            sizes: BTreeMap::new(),
        };
        for shape in shapes.truth.iter().chain(&shapes.found) {
            shapes
                .sizes
                .insert(shape.page, (shape.size.width, shape.size.height));
        }
        if self.with_pictures {
            shapes.pictures = self.pictures(task).await?;
        }
        Ok(shapes)
    }

    /// The shrunk pictures of a task's pages.
    async fn pictures(&self, task: &StoredTask) -> anyhow::Result<HashMap<usize, Vec<u8>>> {
        let mut pictures = HashMap::new();
        for (number, page) in self.image.pages(&task.data)?.into_iter().enumerate() {
            let request = ImageRequest {
                value: &page.url,
                label_studio: &self.label_studio,
                task: Some(task.id),
                login: None,
            };
            let pixels = self.fetcher.load(request).await?;
            pictures.insert(number, thumbnail(&pixels)?);
        }
        Ok(pictures)
    }
}

/// Pages of one task have consecutive ids.
const PAGES_PER_TASK: u64 = 1000;

impl TaskShapes {
    fn add_to(mut self, compared: &mut Compared) {
        // a task without any shape is an image all the same
        self.sizes.entry(0).or_insert((0, 0));
        for (page, (width, height)) in &self.sizes {
            let name = match self.sizes.len() {
                1 => format!("task {}", self.task),
                _ => format!("task {}, page {}", self.task, page + 1),
            };
            compared.images.push(ComparedImage {
                id: self.id(*page),
                name,
                thumbnail: self.pictures.remove(page).unwrap_or_default(),
                width: *width,
                height: *height,
            });
        }
        for shape in &self.truth {
            let comparison = comparison(compared, shape);
            comparison
                .truth
                .extend(bounding_box(shape).map(|bounding_box| TrueObject {
                    image: self.id(shape.page),
                    label: shape.label.clone(),
                    bounding_box,
                    mask: mask(shape),
                    is_crowd: false,
                }));
        }
        for shape in &self.found {
            let comparison = comparison(compared, shape);
            comparison
                .found
                .extend(bounding_box(shape).map(|bounding_box| FoundObject {
                    image: self.id(shape.page),
                    label: shape.label.clone(),
                    score: shape.score.unwrap_or(0.0),
                    bounding_box,
                    mask: mask(shape),
                }));
        }
    }

    fn id(&self, page: usize) -> u64 {
        self.task * PAGES_PER_TASK + page as u64
    }
}

/// Boxes are compared with boxes, and masks with masks, because Label Studio stores them as separate regions.
fn comparison<'a>(compared: &'a mut Compared, shape: &LabeledShape) -> &'a mut Comparison {
    match shape.outline {
        Outline::Box(_) => &mut compared.boxes,
        Outline::Mask(_) => compared.masks.get_or_insert_default(),
    }
}

fn bounding_box(shape: &LabeledShape) -> Option<CocoBox> {
    shape.outline.bounding_box()
}

fn mask(shape: &LabeledShape) -> Option<std::sync::Arc<crate::geometry::Mask>> {
    match &shape.outline {
        Outline::Mask(mask) => Some(mask.clone()),
        Outline::Box(_) => None,
    }
}
