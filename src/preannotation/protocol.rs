//! Label Studio's capability protocol: its editor offers click-to-mask on the control tags of a project, without a special
//! labeling config. No release of Label Studio speaks it yet, so everything about it is in this module and may change.
//!
//! Its requests travel as `params.context` of an interactive `/predict`. They differ from those of today's smart tools:
//! they name an event, or their regions carry neither `from_name` nor `to_name`, and all points belong to one object. The
//! answer is always a mask, white on black; the editor itself makes boxes, polygons or vectors of it.

use std::sync::Arc;

use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::areas::page_of;
use super::project::Origin;
use super::search::{build_regions, page, record_timings};
use super::smart_tools::{MAX_SHAPES, SmartToolShape, one_object};
use super::{PreannotationError, Preannotator, Task};
use crate::labeling::LabelingConfig;
use crate::pipeline::scheduler::Urgency;
use crate::pipeline::stages::StageRequest;
use crate::pipeline::timings::Timings;
use crate::regions::{bitmask, random_id};

/// A request of the protocol.
#[derive(Debug, Clone, PartialEq)]
pub enum ProtocolRequest {
    /// What the backend can do; sent once, with any task.
    Capabilities,
    /// A task was opened: its image will be needed.
    Prewarm,
    /// The task was left.
    Release,
    /// An event that is not for images, such as those for videos.
    Unknown(String),
    /// More points and boxes than can be used together.
    TooManyMarks(usize),
    /// Points and boxes on one object.
    Marks {
        /// All of the object so far, in the order in which they were drawn.
        shapes: Vec<SmartToolShape>,
        /// The number of the page, from 0.
        page: Option<usize>,
    },
}

/// The answer to a request of the protocol, in the place of a prediction.
#[derive(Debug, Serialize, ToSchema)]
pub struct ProtocolAnswer {
    /// One entry. If the request is unknown, or the mask is empty, there is none, and the answer is an empty prediction.
    #[schema(min_items = 1, max_items = 1)]
    result: Vec<ProtocolItem>,
    /// The predicted quality of the mask, 0..1; 0 without a mask.
    #[schema(minimum = 0, maximum = 1)]
    score: f32,
    /// The models and settings of the project.
    model_version: String,
}

/// The only entry of an answer's result.
#[derive(Debug, Serialize, ToSchema)]
#[allow(missing_docs)] // Label Studio's own field names
struct ProtocolItem {
    id: String,
    /// `capabilities`, `prewarm_ack`, `release_ack` or `bitmask`.
    #[serde(rename = "type")]
    kind: &'static str,
    origin: &'static str,
    value: Value,
}

impl ProtocolRequest {
    /// Parses `params.context`; `None` if it is not a request of this protocol.
    pub fn parse(context: &Value) -> Option<Self> {
        if let Some(event) = context["event"].as_str() {
            return Some(match event {
                "capabilities" => Self::Capabilities,
                "prewarm" => Self::Prewarm,
                "release" => Self::Release,
                other => Self::Unknown(other.chars().take(40).collect()),
            });
        }
        let regions = context["result"].as_array()?;
        let last = regions.last()?;
        let has_no_names = |region: &Value| {
            region.is_object() && region["from_name"].is_null() && region["to_name"].is_null()
        };
        let shapes: Option<Vec<SmartToolShape>> = regions
            .iter()
            .map(|region| SmartToolShape::from_region(region).filter(|_| has_no_names(region)))
            .collect();
        let shapes = shapes?;
        Some(match shapes.len() {
            0..=MAX_SHAPES => Self::Marks {
                shapes,
                page: page_of(last),
            },
            count => Self::TooManyMarks(count),
        })
    }
}

impl Preannotator {
    /// Answers a request of the protocol for one task. Only [`ProtocolRequest::Marks`] waits for models.
    ///
    /// # Errors
    /// See [`PreannotationError`].
    pub async fn answer_protocol(
        self: &Arc<Self>,
        origin: &Origin,
        config: &Arc<LabelingConfig>,
        task: &Task,
        request: &ProtocolRequest,
    ) -> Result<ProtocolAnswer, PreannotationError> {
        let version = self.projects.version(&origin.project, Some(config));
        let answer = |item: Option<(&'static str, Value)>, score| ProtocolAnswer {
            result: item.into_iter().map(ProtocolItem::new).collect(),
            score,
            model_version: version.clone(),
        };
        Ok(match request {
            ProtocolRequest::Capabilities => {
                let value = self.capabilities(&version);
                answer(Some(("capabilities", value)), 0.0)
            }
            ProtocolRequest::Prewarm => {
                let is_ready = self.prewarm(origin, config, task);
                let (cached, pending): (&[usize], &[usize]) = match is_ready {
                    true => (&[0], &[]),
                    false => (&[], &[0]),
                };
                let value = json!({"status": "ok", "cached": cached, "pending": pending});
                answer(Some(("prewarm_ack", value)), 0.0)
            }
            ProtocolRequest::Release => {
                self.prewarms.cancel(&origin.project, task.id);
                answer(Some(("release_ack", json!({"status": "released"}))), 0.0)
            }
            ProtocolRequest::Unknown(event) => {
                tracing::info!(
                    event,
                    "the answer is empty: the event is not one that groundling knows"
                );
                answer(None, 0.0)
            }
            ProtocolRequest::TooManyMarks(marks) => {
                tracing::warn!(
                    marks,
                    "the answer is empty: at most {MAX_SHAPES} points and boxes can be used together"
                );
                answer(None, 0.0)
            }
            ProtocolRequest::Marks { shapes, page } => {
                let mask = self
                    .mask_of_object(origin, config, task, shapes, *page)
                    .await?;
                let score = mask.as_ref().map_or(0.0, |(_, score)| *score);
                answer(mask.map(|(value, _)| ("bitmask", value)), score)
            }
        })
    }

    fn capabilities(&self, version: &str) -> Value {
        let model_info = json!({"name": "groundling", "version": version});
        let (prompts, targets) = match self.projects.has_segmenter() {
            true => (
                json!(["point", "box"]),
                json!([
                    {"tag": "BitmaskLabels", "output": "mask"},
                    {"tag": "RectangleLabels", "output": "bbox"},
                    {"tag": "PolygonLabels", "output": "polygon"},
                    {"tag": "VectorLabels", "output": "polygon"},
                ]),
            ),
            false => (json!([]), json!([])),
        };
        json!({"prompts": prompts, "targets": targets, "model_info": model_info})
    }

    /// Starts to compute the image embedding of a task's first image. Returns whether that is done already.
    fn prewarm(
        self: &Arc<Self>,
        origin: &Origin,
        config: &Arc<LabelingConfig>,
        task: &Task,
    ) -> bool {
        let this = self.clone();
        let (origin, config, task) = (origin.clone(), config.clone(), task.clone());
        let (project, number) = (origin.project.clone(), task.id);
        self.prewarms.start(&project, number, async move {
            let embedded = this.embed_for_clicks(origin, config, &task).await;
            if let Err(error) = embedded {
                tracing::warn!("the image was not prepared for clicks: {error}");
            }
        })
    }

    async fn embed_for_clicks(
        &self,
        origin: Origin,
        config: Arc<LabelingConfig>,
        task: &Task,
    ) -> Result<(), PreannotationError> {
        let snapshot = self.projects.snapshot(origin, config, None);
        let shown = page(snapshot.config.image()?, None, task)?;
        let timings = Timings::default();
        let request = StageRequest {
            urgency: Urgency::Opened,
            timings: &timings,
        };
        let image = self.task_image(&snapshot, task, &shown.url).await?;
        self.stages.prepare(&image, request).await?;
        tracing::info!(timings = %timings, "the image is prepared for clicks");
        Ok(())
    }

    /// The mask of the object that the shapes mark, and its score; `None` if it is empty.
    async fn mask_of_object(
        &self,
        origin: &Origin,
        config: &Arc<LabelingConfig>,
        task: &Task,
        shapes: &[SmartToolShape],
        number: Option<usize>,
    ) -> Result<Option<(Value, f32)>, PreannotationError> {
        let snapshot = self.projects.snapshot(origin.clone(), config.clone(), None);
        // regions of the protocol do not name their image tag
        let shown = page(snapshot.config.image()?, number, task)?;
        let timings = Timings::default();
        let request = StageRequest {
            urgency: Urgency::Annotator,
            timings: &timings,
        };
        let _permit = self.admit(request.urgency)?;
        let segmented = async {
            let image = self.task_image(&snapshot, task, &shown.url).await?;
            let Some(prompt) = one_object(shapes, image.size) else {
                tracing::info!("the answer is empty: no point marks the object itself");
                return Ok(None);
            };
            let mask = self.stages.refine(&image, &prompt, request).await?;
            Ok::<_, PreannotationError>(Some(mask))
        };
        let segmented = segmented.await;
        record_timings(&timings);
        let Some(scored) = segmented? else {
            return Ok(None);
        };
        self.metrics.record_prediction(0, &timings);
        tracing::info!(shapes = shapes.len(), "segmented an object");
        let cleanup = snapshot.settings.cleanup;
        let encode = move || {
            let scored = scored.cleaned(cleanup);
            let size = scored.mask.size();
            let value = || {
                json!({
                    "imageDataURL": bitmask::white_data_url(&scored.mask),
                    "width": size.width,
                    "height": size.height,
                })
            };
            (scored.mask.area() > 0).then(|| (value(), scored.score.clamp(0.0, 1.0)))
        };
        build_regions(encode).await
    }
}

impl ProtocolItem {
    fn new((kind, value): (&'static str, Value)) -> Self {
        Self {
            id: random_id(),
            kind,
            origin: "manual",
            value,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(positive: Value) -> Value {
        json!({"type": "keypointlabels", "value": {"x": 10, "y": 20, "positive": positive}})
    }

    fn signs(context: &Value) -> Vec<bool> {
        let Some(ProtocolRequest::Marks { shapes, .. }) = ProtocolRequest::parse(context) else {
            panic!("{context}");
        };
        let sign = |shape: &SmartToolShape| match shape {
            SmartToolShape::Point { is_foreground, .. } => *is_foreground,
            SmartToolShape::Rectangle { .. } => panic!("{shape:?}"),
        };
        shapes.iter().map(sign).collect()
    }

    #[test]
    fn events_and_regions_without_names_belong_to_the_protocol() {
        let parse = |context: Value| ProtocolRequest::parse(&context);
        let event = |name: &str| parse(json!({"event": name})).unwrap();
        assert_eq!(event("capabilities"), ProtocolRequest::Capabilities);
        assert_eq!(event("prewarm"), ProtocolRequest::Prewarm);
        assert_eq!(event("release"), ProtocolRequest::Release);
        assert_eq!(event("track"), ProtocolRequest::Unknown("track".to_owned()));
        let clicks = json!({"result": [point(json!(true)), point(json!(false))]});
        assert_eq!(signs(&clicks), [true, false]);
        let rectangle =
            json!({"type": "rectanglelabels", "value": {"x": 1, "y": 2, "width": 3, "height": 4}});
        assert!(parse(json!({"result": [rectangle]})).is_some());
        let many = json!({"result": vec![point(json!(true)); MAX_SHAPES + 1]});
        assert_eq!(
            parse(many),
            Some(ProtocolRequest::TooManyMarks(MAX_SHAPES + 1))
        );

        // those of today's smart tools carry names
        let mut named = point(json!(true));
        named["from_name"] = json!("k");
        named["to_name"] = json!("image");
        assert_eq!(parse(json!({"result": [named]})), None);
        for other in [
            json!({"result": []}),
            json!({"result": [{"type": "textarea", "value": {"text": ["cup"]}}]}),
            json!({"result": [point(json!(true)), 5]}),
            json!(null),
            json!("text"),
            json!({"event": 5}),
        ] {
            assert_eq!(parse(other.clone()), None, "{other}");
        }
    }
}
