//! The labeling config: which image a task shows, which controls it offers, and their labels.

mod parse;

/// What groundling needs to know of a labeling config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelingConfig {
    /// Every `<Image>`.
    pub images: Vec<ImageTag>,
    /// Every `<TextArea>`, `<RectangleLabels>` and `<BrushLabels>`.
    pub controls: Vec<ControlTag>,
}

/// `<Image name="image" value="$image"/>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageTag {
    /// What controls call it.
    pub name: String,
    /// The key of the task's data that holds the URL.
    pub data_key: String,
}

/// A control attached to an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlTag {
    /// `from_name` of its regions.
    pub name: String,
    /// `to_name` of its regions.
    pub to_name: String,
    /// What it makes.
    pub kind: ControlKind,
}

/// The kinds of control that groundling uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlKind {
    /// Where the prompt is typed.
    TextArea,
    /// Boxes, with these labels.
    RectangleLabels(Vec<String>),
    /// Masks, with these labels.
    BrushLabels(Vec<String>),
}

/// Why a labeling config cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelingError {
    /// Not XML.
    #[error("the labeling config is not well-formed XML: {0}")]
    Malformed(String),
    /// Nothing to look at.
    #[error("the labeling config has no <Image> tag: add <Image name=\"image\" value=\"$image\"/>")]
    NoImage,
    /// An image without what it needs.
    #[error("<{tag}> has no usable {attribute}=\"...\": {hint}")]
    #[allow(missing_docs)]
    Attribute {
        tag: String,
        attribute: &'static str,
        hint: &'static str,
    },
    /// Nowhere to type a prompt.
    #[error(
        "the labeling config has no <TextArea> for the image \"{0}\": add <TextArea name=\"prompt\" toName=\"{0}\"/>"
    )]
    NoTextArea(String),
    /// No control for results.
    #[error(
        "the labeling config has neither <RectangleLabels> nor <BrushLabels> for the image \"{0}\", so results have nowhere to go"
    )]
    NoLabels(String),
}

impl LabelingConfig {
    /// Reads the XML of a labeling config.
    ///
    /// # Errors
    /// If it is malformed, has no image, or a tag lacks a name.
    pub fn parse(xml: &str) -> Result<Self, LabelingError> {
        parse::parse(xml)
    }

    /// The image that prompts are about: the one a text area belongs to, else the first with label
    /// controls, else the first.
    ///
    /// # Errors
    /// If there is none.
    pub fn image(&self) -> Result<&ImageTag, LabelingError> {
        let attached = |is_wanted: fn(&ControlKind) -> bool| {
            let mut wanted = self.controls.iter().filter(|c| is_wanted(&c.kind));
            wanted.find_map(|c| self.images.iter().find(|image| image.name == c.to_name))
        };
        attached(|kind| matches!(kind, ControlKind::TextArea))
            .or_else(|| attached(|kind| !matches!(kind, ControlKind::TextArea)))
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
            .filter(move |control| control.to_name == image.name)
    }

    /// The name of the text area that holds an image's prompt: one named `prompt` before others.
    ///
    /// # Errors
    /// If there is none.
    pub fn text_area(&self, image: &ImageTag) -> Result<&str, LabelingError> {
        let mut areas = self
            .controls
            .iter()
            .filter(|c| c.to_name == image.name && c.kind == ControlKind::TextArea)
            .map(|control| control.name.as_str());
        let first = areas.clone().next();
        areas
            .find(|name| *name == "prompt")
            .or(first)
            .ok_or_else(|| LabelingError::NoTextArea(image.name.clone()))
    }

    /// Every label of an image's controls, each once, in order.
    pub fn labels<'a>(&'a self, image: &'a ImageTag) -> Vec<&'a str> {
        let mut labels = vec![];
        for control in self.controls_of(image) {
            for label in control.labels() {
                if !labels.contains(&label.as_str()) {
                    labels.push(label.as_str());
                }
            }
        }
        labels
    }
}

impl ControlTag {
    /// Its labels; a text area has none.
    pub fn labels(&self) -> &[String] {
        match &self.kind {
            ControlKind::TextArea => &[],
            ControlKind::RectangleLabels(labels) | ControlKind::BrushLabels(labels) => labels,
        }
    }

    /// The label a phrase names: the same text, else the same but for case and blanks.
    pub fn label_for(&self, phrase: &str) -> Option<&str> {
        let folded = |text: &str| {
            let words: Vec<_> = text.split_whitespace().map(str::to_lowercase).collect();
            words.join(" ")
        };
        let labels = self.labels();
        labels
            .iter()
            .find(|label| *label == phrase)
            .or_else(|| labels.iter().find(|label| folded(label) == folded(phrase)))
            .map(String::as_str)
    }
}
