//! The images that a batch searched, with pixels and objects, for consumers that need more than regions: exports.

use tokio::sync::mpsc;

use crate::budget::Reservation;
use crate::labeling::{ImageTag, LabelingConfig};
use crate::media::Pixels;
use crate::pipeline::{DetectedObject, Prediction};

/// An image that was searched, and what was found.
#[derive(Debug)]
pub struct SearchedImage {
    /// The task's id in Label Studio.
    pub task: Option<u64>,
    /// The image's URL in the task's data.
    pub url: String,
    /// The pixels, upright.
    pub pixels: Pixels,
    /// The objects, best first, also those that have no region because no label matches.
    pub objects: Vec<LabeledObject>,
    /// The memory of the masks.
    pub(super) _memory: Reservation,
}

/// An object and its label.
#[derive(Debug)]
pub struct LabeledObject {
    /// The object.
    pub object: DetectedObject,
    /// The name of the label that its phrase matches. If the image's controls have no labels, it is the phrase.
    pub label: Option<String>,
}

/// Takes the images of a batch, one after the other. The batch waits until there is room for the next one, so only a few are
/// in memory.
#[derive(Debug, Clone)]
pub struct ImageSink {
    /// Where the images are sent to. If the receiver is closed, images are dropped.
    pub sender: mpsc::Sender<SearchedImage>,
    /// Whether objects are segmented even if no control needs masks.
    pub with_masks: bool,
}

/// The objects of a prediction, each with its label in the first control that knows its phrase.
pub(super) fn labeled_objects(
    prediction: Prediction,
    config: &LabelingConfig,
    image: &ImageTag,
) -> Vec<LabeledObject> {
    let controls: Vec<_> = config.region_controls(image).collect();
    let has_labels = !config.labels(image).is_empty();
    let label = |phrase: &str| match has_labels {
        true => {
            let mut known = controls.iter();
            let label = known.find_map(|control| control.label_for(phrase));
            label.map(|(_, label)| label.name().to_owned())
        }
        false => Some(phrase.to_owned()),
    };
    let objects = prediction.objects.into_iter();
    objects
        .map(|object| LabeledObject {
            label: object.detection.phrase.as_deref().and_then(label),
            object,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::{BoundingBox, Detection, ImageSize};

    #[test]
    fn an_object_has_the_name_of_the_label_that_its_phrase_matches() {
        let names = |controls: &str| -> Vec<Option<String>> {
            let config = format!("<View><Image name='i' value='$i'/>{controls}</View>");
            let config = LabelingConfig::parse(&config).unwrap();
            let object = |phrase: Option<&str>| DetectedObject {
                detection: Detection {
                    phrase: phrase.map(str::to_owned),
                    score: 0.5,
                    bounding_box: BoundingBox::from_cxcywh(
                        [0.5; 4],
                        ImageSize {
                            height: 8,
                            width: 8,
                        },
                    ),
                },
                mask: None,
            };
            let prediction = Prediction {
                size: ImageSize {
                    height: 8,
                    width: 8,
                },
                objects: [Some("cups"), Some("pot"), Some("lid"), None]
                    .map(object)
                    .to_vec(),
                best_rejected: None,
            };
            let found = labeled_objects(prediction, &config, config.image().unwrap());
            found.into_iter().map(|object| object.label).collect()
        };
        let some = |label: &str| Some(label.to_owned());
        let two_controls = "<RectangleLabels name='r' toName='i'><Label value='Cup' alias='c'/></RectangleLabels>
             <BrushLabels name='b' toName='i'><Label value='Cup'/><Label value='Pot'/></BrushLabels>";
        assert_eq!(names(two_controls), [some("c"), some("Pot"), None, None]);
        let without_labels = "<Rectangle name='r' toName='i'/>";
        assert_eq!(
            names(without_labels),
            [some("cups"), some("pot"), some("lid"), None]
        );
    }
}
