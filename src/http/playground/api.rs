//! What the page asks the server: the candidates of a prompt, masks of boxes, and the mask of an object that was marked.
//!
//! An image is sent once: later requests name it by its digest, until the server has dropped its pixels.

use axum::Json;
use axum::extract::State;
use image::Rgb;
use serde::{Deserialize, Serialize};

use super::{AppState, task};
use crate::geometry::coco_rle::CocoRle;
use crate::geometry::{BoundingBox, Point, SegmentPrompt};
use crate::http::body::JsonBody;
use crate::http::error::{RequestError, run_blocking};
use crate::http::wire::parse_object;
use crate::labeling::new_config;
use crate::media::{Digest, TaskImage};
use crate::palette::{PALETTE, UNNAMED, html};
use crate::pipeline::timings::Timings;
use crate::preannotation::playground::{ComparedModel, LOWEST_SCORE, ObjectMask, PlaygroundImage};
use crate::preannotation::{PreannotationError, Preannotator};

/// Limit of the boxes and of the points of a request.
const MAX_SHAPES: usize = 1000;

/// The settings that the page starts with.
#[derive(Debug, Serialize)]
pub(super) struct Settings {
    version: &'static str,
    /// groundling's version and the models' names.
    models: String,
    box_threshold: f32,
    text_threshold: f32,
    nms_iou: f32,
    lowest_score: f32,
    /// Whether the server has a detector of its own.
    own_detector: bool,
    /// Whether the server has a segmenter of its own.
    own_segmenter: bool,
    /// Whether pictures of Label Studio's tasks are served.
    tasks: bool,
    /// The colours of phrases by their number, as in the overlays of `predict`; more phrases start again.
    palette: Vec<String>,
    /// The colour of a box without a phrase.
    unnamed: String,
    /// Further detectors.
    detectors: Vec<Detector>,
    /// The names of further segmenters.
    segmenters: Vec<String>,
}

/// A further detector.
#[derive(Debug, Serialize)]
struct Detector {
    name: String,
    box_threshold: f32,
}

/// `GET /playground/api/settings`
pub(super) async fn settings(State(state): State<AppState>) -> Json<Settings> {
    let projects = state.preannotator.projects();
    let options = &projects.prediction_settings().options;
    let compared = state.preannotator.compared_models();
    let detectors = compared.detectors.iter();
    let detectors = detectors.map(|(box_threshold, detector)| Detector {
        name: detector.name.clone(),
        box_threshold: *box_threshold,
    });
    let segmenters = compared.segmenters.iter();
    Json(Settings {
        version: env!("CARGO_PKG_VERSION"),
        models: projects.version("", None),
        box_threshold: options.box_threshold,
        text_threshold: options.text_threshold,
        nms_iou: options.nms_iou_threshold,
        lowest_score: LOWEST_SCORE,
        own_detector: projects.has_detector(),
        own_segmenter: projects.has_segmenter(),
        tasks: task::is_served(&state),
        palette: PALETTE.iter().map(|color| html(Rgb(*color))).collect(),
        unnamed: html(UNNAMED),
        detectors: detectors.collect(),
        segmenters: segmenters.map(|model| model.name.clone()).collect(),
    })
}

/// An image: a data URI, or the digest of one that was sent before.
#[derive(Debug, Deserialize)]
#[serde(from = "String")]
struct WireImage(PlaygroundImage);

impl From<String> for WireImage {
    fn from(value: String) -> Self {
        Self(match Digest::from_hex(&value) {
            Some(digest) => PlaygroundImage::Known(digest),
            None => PlaygroundImage::DataUri(value),
        })
    }
}

#[derive(Debug, Deserialize)]
struct FindRequest {
    image: WireImage,
    prompt: String,
    text_threshold: Option<f32>,
    /// The name of a detector in [`Settings`]; null for the server's own one.
    detector: Option<String>,
}

/// What a prompt found, whatever the scores are.
#[derive(Debug, Serialize)]
pub(super) struct FindResponse {
    /// The digest of the image, for later requests.
    image: String,
    width: usize,
    height: usize,
    phrases: Vec<String>,
    candidates: Vec<Candidate>,
    /// A labeling config with the phrases as labels.
    labeling_config: String,
    stages: Vec<Stage>,
}

#[derive(Debug, Serialize)]
struct Candidate {
    phrase: Option<String>,
    score: f32,
    /// x0, y0, x1, y1 in pixels.
    #[serde(rename = "box")]
    bounding_box: [f32; 4],
}

/// The time of a stage.
#[derive(Debug, Serialize)]
struct Stage {
    stage: &'static str,
    /// Number of steps that were computed.
    computed: u32,
    ms: f64,
    /// Number of results that were cached in memory or on disk.
    cached: u32,
}

/// `POST /playground/api/find`
pub(super) async fn find(
    State(state): State<AppState>,
    body: JsonBody,
) -> Result<Json<FindResponse>, RequestError> {
    let request: FindRequest = parse(body).await?;
    let preannotator = &state.preannotator;
    let detectors = preannotator.compared_models().detectors.iter();
    let detectors = detectors.map(|(_, detector)| detector);
    let detector = compared(
        detectors,
        request.detector.as_deref(),
        "PLAYGROUND_DETECTORS",
    )?;
    let image = image(&state, &request.image).await?;
    let default = preannotator.projects().prediction_settings().options;
    let text_threshold = request.text_threshold.unwrap_or(default.text_threshold);
    let timings = Timings::default();
    let found = preannotator
        .candidates(&image, detector, &request.prompt, text_threshold, &timings)
        .await?;
    let candidates = found.detections.into_iter().map(|detection| Candidate {
        bounding_box: detection.bounding_box.clamped(image.size).corners(),
        phrase: detection.phrase,
        score: detection.score,
    });
    let labels: Vec<&str> = found.phrases.iter().map(String::as_str).collect();
    Ok(Json(FindResponse {
        image: image.digest.to_string(),
        width: image.size.width,
        height: image.size.height,
        labeling_config: new_config(&labels),
        candidates: candidates.collect(),
        stages: stages(&timings),
        phrases: found.phrases,
    }))
}

#[derive(Debug, Deserialize)]
struct SegmentRequest {
    image: WireImage,
    /// The name of a segmenter in [`Settings`]; null for the server's own one.
    segmenter: Option<String>,
    /// x0, y0, x1, y1 in pixels of each box.
    boxes: Vec<[f32; 4]>,
}

/// One mask per box, in the same order.
#[derive(Debug, Serialize)]
pub(super) struct Masks {
    masks: Vec<MaskAnswer>,
    stages: Vec<Stage>,
}

#[derive(Debug, Serialize)]
struct MaskAnswer {
    mask: CocoRle,
    /// The predicted IoU of the mask with the object.
    score: f32,
    /// Number of pixels.
    area: usize,
}

/// `POST /playground/api/segment`
pub(super) async fn segment(
    State(state): State<AppState>,
    body: JsonBody,
) -> Result<Json<Masks>, RequestError> {
    let request: SegmentRequest = parse(body).await?;
    let boxes: Result<Vec<_>, _> = request.boxes.iter().map(bounding_box).collect();
    let boxes = limited("boxes", boxes?)?;
    let segmenter = compared_segmenter(&state.preannotator, request.segmenter.as_deref())?;
    let image = image(&state, &request.image).await?;
    let timings = Timings::default();
    let masks = state
        .preannotator
        .masks_of_boxes(&image, segmenter, &boxes, &timings)
        .await?;
    Ok(answer(masks, &timings))
}

#[derive(Debug, Deserialize)]
struct MarkRequest {
    image: WireImage,
    /// As in [`SegmentRequest`].
    segmenter: Option<String>,
    #[serde(rename = "box")]
    bounding_box: Option<[f32; 4]>,
    #[serde(default)]
    points: Vec<Mark>,
}

/// A point in pixels.
#[derive(Debug, Deserialize)]
struct Mark {
    x: f32,
    y: f32,
    /// Whether it is on the object, else on the background.
    positive: bool,
}

/// `POST /playground/api/mark`
pub(super) async fn mark(
    State(state): State<AppState>,
    body: JsonBody,
) -> Result<Json<Masks>, RequestError> {
    let request: MarkRequest = parse(body).await?;
    let points = request.points.iter().map(|point| Point {
        x: point.x,
        y: point.y,
        is_foreground: point.positive,
    });
    let marks = SegmentPrompt {
        bounding_box: request
            .bounding_box
            .as_ref()
            .map(bounding_box)
            .transpose()?,
        points: limited("points", points.collect())?,
    };
    if marks.bounding_box.is_none() && !marks.points.iter().any(|point| point.is_foreground) {
        let text = "mark the object with a box, or with a point on it";
        return Err(RequestError::Body(text.to_owned()));
    }
    let segmenter = compared_segmenter(&state.preannotator, request.segmenter.as_deref())?;
    let image = image(&state, &request.image).await?;
    let timings = Timings::default();
    let mask = state
        .preannotator
        .mask_of_marks(&image, segmenter, &marks, &timings)
        .await?;
    Ok(answer(vec![mask], &timings))
}

/// Parses a body, outside of the async threads because it may contain an image.
async fn parse<T: for<'de> Deserialize<'de> + Send + 'static>(
    body: JsonBody,
) -> Result<T, RequestError> {
    run_blocking(move || parse_object(&body.bytes)).await?
}

async fn image<'a>(
    state: &'a AppState,
    image: &'a WireImage,
) -> Result<TaskImage<'a>, RequestError> {
    let found = state.preannotator.playground_image(&image.0).await;
    let found = found.map_err(PreannotationError::Media)?;
    found.ok_or(RequestError::Forgotten)
}

fn compared_segmenter<'a>(
    preannotator: &'a Preannotator,
    name: Option<&str>,
) -> Result<Option<&'a ComparedModel>, RequestError> {
    let segmenters = preannotator.compared_models().segmenters.iter();
    compared(segmenters, name, "PLAYGROUND_SEGMENTERS")
}

/// The further model with a name; `None` without a name, for the server's own one.
fn compared<'a>(
    mut models: impl Iterator<Item = &'a ComparedModel>,
    name: Option<&str>,
    setting: &str,
) -> Result<Option<&'a ComparedModel>, RequestError> {
    let Some(name) = name else { return Ok(None) };
    let found = models.find(|model| model.name == name);
    found.map(Some).ok_or_else(|| {
        RequestError::Body(format!(
            "there is no further model {name:?}: {setting} lists them"
        ))
    })
}

fn limited<T>(name: &str, shapes: Vec<T>) -> Result<Vec<T>, RequestError> {
    match shapes.len() {
        0..=MAX_SHAPES => Ok(shapes),
        count => Err(RequestError::Body(format!(
            "{count} {name} are too many: at most {MAX_SHAPES} are allowed"
        ))),
    }
}

fn bounding_box(corners: &[f32; 4]) -> Result<BoundingBox, RequestError> {
    let [x0, y0, x1, y1] = *corners;
    match x0 <= x1 && y0 <= y1 && corners.iter().all(|value| value.is_finite()) {
        true => Ok(BoundingBox { x0, y0, x1, y1 }),
        false => Err(RequestError::Body(format!(
            "{corners:?} is not a box: it must be [x0, y0, x1, y1] in pixels, with x0 <= x1 and y0 <= y1"
        ))),
    }
}

fn answer(masks: Vec<ObjectMask>, timings: &Timings) -> Json<Masks> {
    let masks = masks.into_iter().map(|mask| MaskAnswer {
        mask: mask.mask,
        score: mask.score,
        area: mask.area,
    });
    Json(Masks {
        masks: masks.collect(),
        stages: stages(timings),
    })
}

fn stages(timings: &Timings) -> Vec<Stage> {
    let stages = timings.stages().into_iter().map(|time| Stage {
        stage: time.stage,
        computed: time.computed,
        ms: (time.time.as_secs_f64() * 1e4).round() / 10.0,
        cached: time.from_memory + time.from_disk,
    });
    stages.collect()
}
