//! The labeling config: the images of a task, its controls, and their labels.

mod error;
mod fingerprint;
mod image_tag;
mod label;
mod label_thresholds;
mod new_config;
mod new_labels;
mod outputs;
mod parse;
mod task_labels;

use std::collections::HashSet;

pub use error::LabelingError;
pub use image_tag::{ImageTag, Page};
pub use label::Label;
pub use label_thresholds::with_thresholds;
pub use new_config::new_config;
pub use new_labels::{escaped, with_labels};
pub use outputs::Outputs;

use crate::prompt::Prompt;

/// The parts of a labeling config that groundling uses.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelingConfig {
    /// All `<Image>` tags.
    pub images: Vec<ImageTag>,
    /// All controls of the kinds that groundling uses.
    pub controls: Vec<ControlTag>,
    /// The controls that get regions; `None`: all but those of the shapes that are outputs only on request.
    pub outputs: Option<Outputs>,
}

/// A control tag, attached to object tags.
#[derive(Debug, Clone, PartialEq)]
pub struct ControlTag {
    /// `from_name` of its regions.
    pub name: String,
    /// The names of the object tags it is attached to.
    pub to_names: Vec<String>,
    /// The kind of control.
    pub kind: ControlKind,
    /// Its labels, in order.
    pub labels: Vec<Label>,
    /// The key of the task's data that holds further labels.
    pub labels_key: Option<String>,
    /// Maximum distance of its outlines from the mask's boundary, in percent of the image's longer side; `None`: as the
    /// settings say.
    pub polygon_tolerance: Option<f32>,
}

/// The kinds of control that groundling uses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ControlKind {
    /// `<TextArea>`: a text input, possibly for the prompt.
    TextArea {
        /// Whether its name or class marks it as the prompt.
        is_prompt: bool,
    },
    /// `<TextArea>` whose name or class is `groundling-status`: shows messages to the annotator.
    Status,
    /// `<Rectangle>` or `<RectangleLabels>` whose name or class is `roi`: its rectangles limit the search.
    RegionOfInterest,
    /// `<Number>`: a threshold, if its name says so.
    Number {
        /// Its `defaultValue`.
        default: Option<f32>,
    },
    /// `<Labels>`: labels for shapes without labels of their own.
    Labels,
    /// `<RectangleLabels>` and similar tags: a shape with its own labels.
    ShapeLabels(Shape),
    /// `<Rectangle>` and similar tags: a shape whose label comes from a `<Labels>`.
    Shape(Shape),
}

/// The shape of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A box.
    Rectangle,
    /// A mask.
    Brush,
    /// A polygon.
    Polygon,
    /// A mask as an image.
    Bitmask,
    /// An outline of connected vertices.
    Vector,
    /// An ellipse; an output only on request.
    Ellipse,
    /// A point; an output only on request, because smart tools use such controls for clicks.
    KeyPoint,
}

/// A control that takes regions, and the controls that define their labels.
#[derive(Debug, Clone, PartialEq)]
pub struct RegionControl<'a> {
    /// The shape of its regions.
    pub shape: Shape,
    /// The control.
    pub control: &'a ControlTag,
    /// The source of its labels: the control itself, or every `<Labels>` of the same image.
    pub labels: Vec<&'a ControlTag>,
}

impl LabelingConfig {
    /// Parses the XML of a labeling config.
    ///
    /// # Errors
    /// If it is malformed, exceeds a size limit, has no image, or lacks a required attribute.
    pub fn parse(xml: &str) -> Result<Self, LabelingError> {
        parse::parse(xml)
    }

    /// The image tag with this name.
    pub fn image_named(&self, name: &str) -> Option<&ImageTag> {
        self.images.iter().find(|image| image.name == name)
    }

    /// The images with at least one region control, in order.
    pub fn images_with_regions(&self) -> impl Iterator<Item = &ImageTag> {
        self.images.iter().filter(|image| self.takes_regions(image))
    }

    /// The image that prompts refer to: the one that the prompt's text area is attached to, else the first image with
    /// a region control, else the first image.
    ///
    /// # Errors
    /// If the config has no image.
    pub fn image(&self) -> Result<&ImageTag, LabelingError> {
        let of_prompt = |explicit_only: bool| {
            let mut areas = self.controls.iter().filter(|control| match control.kind {
                ControlKind::TextArea { is_prompt } => is_prompt || !explicit_only,
                _ => false,
            });
            areas.find_map(|area| area.to_names.iter().find_map(|name| self.image_named(name)))
        };
        of_prompt(true)
            .or_else(|| of_prompt(false))
            .filter(|image| self.takes_regions(image))
            .or_else(|| self.images_with_regions().next())
            .or_else(|| of_prompt(false))
            .or_else(|| self.images.first())
            .ok_or(LabelingError::NoImage)
    }

    /// The controls attached to an image.
    pub fn controls_of<'a>(
        &'a self,
        image: &'a ImageTag,
    ) -> impl Iterator<Item = &'a ControlTag> + 'a {
        self.controls
            .iter()
            .filter(move |control| control.to_names.contains(&image.name))
    }

    /// The controls that take regions of an image.
    pub fn region_controls<'a>(
        &'a self,
        image: &'a ImageTag,
    ) -> impl Iterator<Item = RegionControl<'a>> + 'a {
        let of_image = self.controls_of(image);
        let shared: Vec<_> = of_image
            .filter(|control| control.kind == ControlKind::Labels)
            .collect();
        self.controls_of(image)
            .filter_map(move |control| match control.kind {
                ControlKind::ShapeLabels(shape) if self.is_output(control, shape) => {
                    Some(RegionControl {
                        shape,
                        control,
                        labels: vec![control],
                    })
                }
                ControlKind::Shape(shape) if self.is_output(control, shape) => {
                    Some(RegionControl {
                        shape,
                        control,
                        labels: shared.clone(),
                    })
                }
                _ => None,
            })
    }

    /// Whether a control of this shape gets regions.
    fn is_output(&self, control: &ControlTag, shape: Shape) -> bool {
        match &self.outputs {
            Some(outputs) => outputs.include(control, shape),
            None => shape.is_usual_output(),
        }
    }

    /// The config with other outputs.
    pub fn with_outputs(mut self, outputs: Option<Outputs>) -> Self {
        self.outputs = outputs;
        self
    }

    /// The controls whose rectangles limit the search in an image.
    pub fn regions_of_interest<'a>(
        &'a self,
        image: &'a ImageTag,
    ) -> impl Iterator<Item = &'a ControlTag> + 'a {
        self.controls_of(image)
            .filter(|control| control.kind == ControlKind::RegionOfInterest)
    }

    /// The text area that shows messages to the annotator.
    pub fn status_area(&self) -> Option<&ControlTag> {
        let mut controls = self.controls.iter();
        controls.find(|control| control.kind == ControlKind::Status)
    }

    /// Checks that an image has a control that takes regions.
    ///
    /// # Errors
    /// If it has none, or none is among the outputs.
    pub fn require_region_control(&self, image: &ImageTag) -> Result<(), LabelingError> {
        if self.takes_regions(image) {
            return Ok(());
        }
        let takes_shapes = |control: &&ControlTag| {
            matches!(
                control.kind,
                ControlKind::Shape(_) | ControlKind::ShapeLabels(_)
            )
        };
        let controls = self.controls_of(image).filter(takes_shapes);
        let controls: Vec<String> = controls.map(|control| control.name.clone()).collect();
        match &self.outputs {
            Some(outputs) if !controls.is_empty() => Err(LabelingError::NoOutput {
                image: image.name.clone(),
                wanted: outputs.names().to_vec(),
                controls,
            }),
            _ => Err(LabelingError::NoRegionControl(image.name.clone())),
        }
    }

    fn takes_regions(&self, image: &ImageTag) -> bool {
        self.region_controls(image).next().is_some()
    }

    /// The text area that holds an image's prompt. Among the text areas attached to the image, one with the name or
    /// class `prompt` is preferred. If none is attached, a text area marked as the prompt may belong to another
    /// object tag.
    ///
    /// # Errors
    /// If there is none.
    pub fn text_area<'a>(&'a self, image: &'a ImageTag) -> Result<&'a ControlTag, LabelingError> {
        let is_prompt = |control: &&ControlTag| {
            matches!(control.kind, ControlKind::TextArea { is_prompt: true })
        };
        let is_area = |control: &&ControlTag| matches!(control.kind, ControlKind::TextArea { .. });
        let of_image = || self.controls_of(image);
        let belongs_to_image = |control: &&ControlTag| {
            control
                .to_names
                .iter()
                .any(|n| self.image_named(n).is_some())
        };
        of_image()
            .find(is_prompt)
            .or_else(|| of_image().find(is_area))
            .or_else(|| {
                let mut others = self.controls.iter().filter(is_prompt);
                others.find(|control| !belongs_to_image(control))
            })
            .ok_or_else(|| LabelingError::NoTextArea(image.name.clone()))
    }

    /// All labels of an image's region controls, without duplicates, in order.
    pub fn labels<'a>(&'a self, image: &'a ImageTag) -> Vec<&'a Label> {
        let controls = self.region_controls(image).flat_map(|c| c.labels);
        let mut known = HashSet::new();
        controls
            .flat_map(|control| &control.labels)
            .filter(|label| known.insert(label.name()))
            .collect()
    }
}

impl LabelingConfig {
    /// The prompt that searches for all labels of an image; `None` if there is no label with a word.
    pub fn prompt_of_labels(&self, image: &ImageTag) -> Option<Prompt> {
        let labels = self.labels(image);
        let wanted = labels.iter().flat_map(|label| label.phrases());
        let prompt = Prompt::from_phrases(wanted).ok()?;
        let negative = labels.iter().flat_map(|label| &label.negative_prompts);
        Some(prompt.with_negative(negative.map(String::as_str)))
    }
}

impl<'a> RegionControl<'a> {
    /// The label that a phrase matches, and the control that defines it; see [`Label::find`] for the order.
    pub fn label_for(&self, phrase: &str) -> Option<(&'a ControlTag, &'a Label)> {
        self.labels
            .iter()
            .find_map(|control| Some((*control, Label::find(&control.labels, phrase)?)))
    }

    /// The label with this name in results, and the control that defines it.
    pub fn label_named(&self, name: &str) -> Option<(&'a ControlTag, &'a Label)> {
        self.labels.iter().find_map(|control| {
            let label = control.labels.iter().find(|label| label.name() == name)?;
            Some((*control, label))
        })
    }
}

impl Shape {
    /// All shapes, in the order of the documentation.
    pub const ALL: [Self; 7] = [
        Self::Rectangle,
        Self::Brush,
        Self::Polygon,
        Self::Bitmask,
        Self::Vector,
        Self::Ellipse,
        Self::KeyPoint,
    ];

    /// Whether a region of this shape is made from a mask, and not only from a box.
    pub fn needs_mask(self) -> bool {
        !matches!(self, Self::Rectangle | Self::KeyPoint)
    }

    /// Whether controls of this shape get regions unless the outputs say otherwise.
    pub fn is_usual_output(self) -> bool {
        !matches!(self, Self::Ellipse | Self::KeyPoint)
    }

    /// Whether a region of this shape is an outline, which is simplified within a tolerance.
    pub fn is_outline(self) -> bool {
        matches!(self, Self::Polygon | Self::Vector)
    }

    /// The `type` of a region without labels of its own: `rectangle`, `brush` and so on.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Rectangle => "rectangle",
            Self::Brush => "brush",
            Self::Polygon => "polygon",
            Self::Bitmask => "bitmask",
            Self::Vector => "vector",
            Self::Ellipse => "ellipse",
            Self::KeyPoint => "keypoint",
        }
    }

    /// The `type` of a region with its own labels, and the key of its labels: `rectanglelabels` and so on.
    pub fn labels_kind(self) -> &'static str {
        match self {
            Self::Rectangle => "rectanglelabels",
            Self::Brush => "brushlabels",
            Self::Polygon => "polygonlabels",
            Self::Bitmask => "bitmasklabels",
            Self::Vector => "vectorlabels",
            Self::Ellipse => "ellipselabels",
            Self::KeyPoint => "keypointlabels",
        }
    }
}
