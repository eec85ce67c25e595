//! The control tags that get regions, if not all of them do.

use super::{ControlTag, Shape};

/// The names of the wanted control tags. A name is the name of a control (`label2`), or a kind of tag (`BrushLabels`,
/// `brush`), in upper or lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outputs(Vec<String>);

impl Outputs {
    /// The outputs with these names; `None`, which means the usual ones, if there is no name.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let names = names.into_iter().map(str::trim);
        let names: Vec<String> = names
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect();
        (!names.is_empty()).then_some(Self(names))
    }

    /// Parses names that are separated by commas.
    pub fn parse(text: &str) -> Option<Self> {
        Self::new(text.split(','))
    }

    /// The names, for messages.
    pub fn names(&self) -> &[String] {
        &self.0
    }

    /// Whether a control of this shape is wanted.
    pub(super) fn include(&self, control: &ControlTag, shape: Shape) -> bool {
        self.0.iter().any(|name| {
            let kinds = [shape.kind(), shape.labels_kind()];
            *name == control.name || kinds.iter().any(|kind| name.eq_ignore_ascii_case(kind))
        })
    }
}
