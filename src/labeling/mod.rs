//! The labeling config: the images of a task, its controls, and their labels.

mod label;
mod parse;

use std::collections::HashSet;

use serde_json::{Map, Value};

pub use label::Label;

/// The parts of a labeling config that groundling uses.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelingConfig {
    /// All `<Image>` tags.
    pub images: Vec<ImageTag>,
    /// All controls of the kinds that groundling uses.
    pub controls: Vec<ControlTag>,
}

/// `<Image name="image" value="$image"/>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageTag {
    /// The name that controls refer to.
    pub name: String,
    /// The image's URL: `$key` of the task's data, or a text that contains such keys.
    pub value: String,
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
}

/// The kinds of control that groundling uses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ControlKind {
    /// `<TextArea>`: a text input, possibly for the prompt.
    TextArea {
        /// Whether its name or class marks it as the prompt.
        is_prompt: bool,
    },
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

/// Why a labeling config cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelingError {
    /// Not XML.
    #[error("the labeling config is not well-formed XML: {0}")]
    Malformed(String),
    /// The config exceeds a size limit.
    #[error("the labeling config has {found} {what}, and may have {limit}")]
    #[allow(missing_docs)]
    TooLarge {
        what: &'static str,
        found: usize,
        limit: usize,
    },
    /// There is no `<Image>` tag.
    #[error("the labeling config has no <Image> tag: add <Image name=\"image\" value=\"$image\"/>")]
    NoImage,
    /// A required attribute is missing or invalid.
    #[error("<{tag}> has no usable {attribute}=\"...\": {hint}")]
    #[allow(missing_docs)]
    Attribute {
        tag: String,
        attribute: &'static str,
        hint: &'static str,
    },
    /// An `<Image>` tag shows several pages.
    #[error(
        "<Image name=\"{0}\"> shows a list of pages (valueList), and groundling answers for single images: use value=\"$image\" and a task per page"
    )]
    ValueList(String),
    /// There is no `<TextArea>` for a prompt.
    #[error(
        "the labeling config has no <TextArea> for the image \"{0}\": add <TextArea name=\"prompt\" toName=\"{0}\"/>"
    )]
    NoTextArea(String),
    /// No control takes regions.
    #[error(
        "the labeling config has no <RectangleLabels>, <BrushLabels> or <PolygonLabels> for the image \"{0}\", so results have nowhere to go"
    )]
    NoRegionControl(String),
    /// There is no prompt, and no label to search for instead.
    #[error(
        "no prompt was given, and the controls of the image \"{0}\" have no <Label> to look for"
    )]
    NoLabels(String),
    /// The task's data has no URL for the image.
    #[error("the task's data has no text under {key:?}, which <Image name=\"{image}\"> shows")]
    #[allow(missing_docs)]
    NoData { image: String, key: String },
}

impl LabelingConfig {
    /// Parses the XML of a labeling config.
    ///
    /// # Errors
    /// If it is malformed, exceeds a size limit, has no image, shows lists of images, or lacks a required attribute.
    pub fn parse(xml: &str) -> Result<Self, LabelingError> {
        parse::parse(xml)
    }

    /// The image tag with this name.
    pub fn image_named(&self, name: &str) -> Option<&ImageTag> {
        self.images.iter().find(|image| image.name == name)
    }

    /// The images with at least one region control, in order.
    pub fn images_with_regions(&self) -> impl Iterator<Item = &ImageTag> {
        let takes_regions = |image: &&ImageTag| self.region_controls(image).next().is_some();
        self.images.iter().filter(takes_regions)
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
        let takes_regions = |image: &&ImageTag| self.region_controls(image).next().is_some();
        of_prompt(true)
            .or_else(|| of_prompt(false))
            .filter(takes_regions)
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
                ControlKind::ShapeLabels(shape) => Some(RegionControl {
                    shape,
                    control,
                    labels: vec![control],
                }),
                ControlKind::Shape(shape) => Some(RegionControl {
                    shape,
                    control,
                    labels: shared.clone(),
                }),
                _ => None,
            })
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
    /// The `type` of a region without labels of its own: `rectangle`, `brush`, `polygon`.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Rectangle => "rectangle",
            Self::Brush => "brush",
            Self::Polygon => "polygon",
        }
    }

    /// The `type` of a region with its own labels, and the key of its labels: `rectanglelabels` and so on.
    pub fn labels_kind(self) -> &'static str {
        match self {
            Self::Rectangle => "rectanglelabels",
            Self::Brush => "brushlabels",
            Self::Polygon => "polygonlabels",
        }
    }
}

/// The key that Label Studio uses for a file that was uploaded or synced before the project had a labeling config.
const UNNAMED: &str = "$undefined$";

impl ImageTag {
    /// The image's URL in a task's data. `$key` is replaced by the value of `key`. `$a.b` is replaced by the value of
    /// the key `a.b`, else by the value of `b` inside `a`. If a key is missing, the value of Label Studio's key
    /// `$undefined$` is used.
    ///
    /// # Errors
    /// If the data has no string there.
    pub fn url(&self, data: &Map<String, Value>) -> Result<String, LabelingError> {
        let look_up = |key: &str| {
            let nested = || {
                let mut parts = key.split('.');
                let first = data.get(parts.next()?)?;
                parts.try_fold(first, |value, part| value.get(part))
            };
            let found = data.get(key).or_else(nested);
            let found = found.or_else(|| data.get(UNNAMED)).and_then(Value::as_str);
            found
                .filter(|text| !text.trim().is_empty())
                .ok_or_else(|| LabelingError::NoData {
                    image: self.name.clone(),
                    key: key.to_owned(),
                })
        };
        let mut parts = self.value.split('$');
        let mut url = parts.next().unwrap_or_default().to_owned();
        if url.is_empty() && parts.clone().count() == 1 {
            // the usual form: one key, which may contain any character
            return look_up(parts.next().unwrap_or_default()).map(str::to_owned);
        }
        for part in parts {
            let end = part
                .find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(part.len());
            url.push_str(look_up(&part[..end])?);
            url.push_str(&part[end..]);
        }
        Ok(url)
    }

    /// The key of the task's data that holds the URL, if the tag's value is a single key.
    pub fn data_key(&self) -> &str {
        self.value.trim_start_matches('$')
    }
}
