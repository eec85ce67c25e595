//! Objects and the numbers of pycocotools for them, which `tests/evaluation/make_fixture.py` has written.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{CocoDataset, CocoResult, FoundObject};
use crate::geometry::coco_rle::CocoRle;

#[derive(Debug)]
pub(super) struct Fixture {
    pub(super) truth: CocoDataset,
    /// The found objects, as in a list of COCO results.
    pub(super) results: Vec<CocoResult>,
    pub(super) found: Vec<FoundObject>,
    pub(super) expected: AllExpected,
    pub(super) polygons: Vec<FilledPolygons>,
}

#[derive(Debug, Deserialize)]
struct File {
    truth: Box<RawValue>,
    found: Vec<CocoResult>,
    expected: AllExpected,
    polygons: Vec<FilledPolygons>,
}

#[derive(Debug, Deserialize)]
pub(super) struct AllExpected {
    pub(super) bbox: Expected,
    pub(super) segm: Expected,
    pub(super) counts: Vec<Counts>,
    /// The masks of all annotations, in their order.
    pub(super) true_masks: Vec<CocoRle>,
    pub(super) iou_threshold_bits: Vec<u64>,
    pub(super) recall_point_bits: Vec<u64>,
}

/// AP and AP50.
#[derive(Debug, Deserialize)]
pub(super) struct Expected {
    pub(super) overall: Option<[f64; 2]>,
    pub(super) labels: BTreeMap<String, Option<[f64; 2]>>,
}

/// Numbers of objects at a score threshold.
#[derive(Debug, Deserialize)]
pub(super) struct Counts {
    pub(super) iou_type: String,
    pub(super) label: String,
    pub(super) threshold: f32,
    pub(super) true_objects: usize,
    pub(super) found: usize,
    pub(super) correct: usize,
}

/// Polygons and the mask of their union.
#[derive(Debug, Deserialize)]
pub(super) struct FilledPolygons {
    pub(super) polygons: Vec<Vec<f64>>,
    #[serde(flatten)]
    pub(super) rle: CocoRle,
}

impl Fixture {
    pub(super) fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/evaluation/fixture.json");
        let text = fs::read_to_string(&path).unwrap();
        let file: File = serde_json::from_str(&text).unwrap();
        let truth = CocoDataset::parse(file.truth.get(), &path).unwrap();
        let categories = truth.categories.iter();
        let labels: HashMap<u64, &str> = categories.map(|c| (c.id, c.name.as_str())).collect();
        let found = file.found.iter().map(|result| FoundObject {
            image: result.image_id,
            label: labels[&result.category_id].to_owned(),
            score: result.score,
            bounding_box: result.bbox,
            mask: result
                .segmentation
                .as_ref()
                .map(|rle| Arc::new(rle.mask().unwrap())),
        });
        let found = found.collect();
        Self {
            truth,
            found,
            results: file.found,
            expected: file.expected,
            polygons: file.polygons,
        }
    }
}
