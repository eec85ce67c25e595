//! Why a labeling config or a task cannot be used.

use super::image_tag::MAX_PAGES;

/// Why a labeling config cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LabelingError {
    /// Not XML.
    #[error("the labeling config is not well-formed XML: {0}")]
    Malformed(String),
    /// The config exceeds a size limit.
    #[error("the labeling config has {found} {what}; the maximum is {limit}")]
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
    #[error("<{tag}> has no valid {attribute}=\"...\": {hint}")]
    #[allow(missing_docs)]
    Attribute {
        tag: String,
        attribute: &'static str,
        hint: &'static str,
    },
    /// There is no `<TextArea>` for a prompt.
    #[error(
        "the labeling config has no <TextArea> for the image \"{0}\": add <TextArea name=\"prompt\" toName=\"{0}\"/>"
    )]
    NoTextArea(String),
    /// No control takes regions.
    #[error(
        "the labeling config has no <RectangleLabels>, <BrushLabels>, <BitmaskLabels>, <PolygonLabels> or <VectorLabels> for the image \"{0}\": add one for the regions"
    )]
    NoRegionControl(String),
    /// No control of the image is among the wanted outputs.
    #[error(
        "none of the outputs {wanted:?} is a control of the image {image:?} that takes regions; it has {controls:?}"
    )]
    #[allow(missing_docs)]
    NoOutput {
        image: String,
        wanted: Vec<String>,
        controls: Vec<String>,
    },
    /// There is no prompt, and no label to search for instead.
    #[error(
        "no prompt was given, and the controls of the image \"{0}\" have no <Label> to search for"
    )]
    NoLabels(String),
    /// The task's data has no URL for the image.
    #[error("the task's data has no text under {key:?}, the key of <Image name=\"{image}\">")]
    #[allow(missing_docs)]
    NoData { image: String, key: String },
    /// The task's data has no list of URLs for the pages.
    #[error(
        "the task's data has no list of URLs under {key:?}, the key of <Image name=\"{image}\" valueList=\"${key}\">"
    )]
    #[allow(missing_docs)]
    NoPages { image: String, key: String },
    /// The task does not have a page.
    #[error(
        "<Image name=\"{image}\"> has no page with the number {number} (from 0) in this task, which has {count} pages"
    )]
    #[allow(missing_docs)]
    NoSuchPage {
        image: String,
        number: usize,
        count: usize,
    },
    /// The task has too many pages.
    #[error(
        "the task has {found} pages for <Image name=\"{image}\">, but at most {MAX_PAGES} are allowed: import several tasks"
    )]
    #[allow(missing_docs)]
    TooManyPages { image: String, found: usize },
}
