//! Predictions as a list of COCO results, which `COCO.loadRes` of pycocotools reads.

use serde::{Deserialize, Serialize};

use super::{CocoBox, CocoDataset, FoundObject};
use crate::geometry::coco_rle::CocoRle;

/// One predicted object in COCO's format of results (<https://cocodataset.org/#format-results>).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CocoResult {
    /// The image.
    pub image_id: u64,
    /// The label.
    pub category_id: u64,
    /// The box.
    pub bbox: CocoBox,
    /// The score, 0..1.
    pub score: f32,
    /// The mask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segmentation: Option<CocoRle>,
}

/// The results of found objects, in the same order. Objects whose labels are not in the dataset are left out, because COCO
/// has no id for them.
pub fn coco_results(dataset: &CocoDataset, found: &[FoundObject]) -> Vec<CocoResult> {
    let result = |object: &FoundObject| {
        let mut categories = dataset.categories.iter();
        let category = categories.find(|category| category.name == object.label)?;
        Some(CocoResult {
            image_id: object.image,
            category_id: category.id,
            bbox: object.bounding_box,
            score: object.score,
            segmentation: object.mask.as_deref().map(CocoRle::new),
        })
    };
    found.iter().filter_map(result).collect()
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Fixture;
    use super::*;

    #[test]
    fn results_are_written_as_they_are_read() {
        let Fixture {
            truth,
            found,
            results,
            ..
        } = Fixture::read();
        assert_eq!(coco_results(&truth, &found), results);
        let unknown = FoundObject {
            label: "unknown".to_owned(),
            mask: None,
            ..found[0].clone()
        };
        assert_eq!(coco_results(&truth, &[unknown]), []);
    }

    #[test]
    fn a_result_without_a_mask_has_no_segmentation() {
        let result = CocoResult {
            image_id: 7,
            category_id: 2,
            bbox: CocoBox([1.5, 2.0, 3.0, 4.0]),
            score: 0.3,
            segmentation: None,
        };
        let json = serde_json::to_string(&result).unwrap();
        let expected = r#"{"image_id":7,"category_id":2,"bbox":[1.5,2.0,3.0,4.0],"score":0.3}"#;
        assert_eq!(json, expected);
    }
}
