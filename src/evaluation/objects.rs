//! True and found objects, and how much two of them overlap.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::geometry::{BoundingBox, Mask};

/// A box as COCO files have it: `[x, y, width, height]` in pixels, from the top left corner. The numbers are those of the
/// file, because a box near an IoU threshold can change sides if they are rounded.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CocoBox(pub [f64; 4]);

impl CocoBox {
    /// The area in square pixels.
    pub fn area(self) -> f64 {
        let [_, _, width, height] = self.0;
        width * height
    }

    /// The area of the common part of two boxes; 0 if there is none.
    pub fn intersection_area(self, other: Self) -> f64 {
        let ([x0, y0, width0, height0], [x1, y1, width1, height1]) = (self.0, other.0);
        let width = (width0 + x0).min(width1 + x1) - x0.max(x1);
        let height = (height0 + y0).min(height1 + y1) - y0.max(y1);
        if width > 0.0 && height > 0.0 {
            width * height
        } else {
            0.0
        }
    }
}

impl From<BoundingBox> for CocoBox {
    fn from(bounding_box: BoundingBox) -> Self {
        let [x0, y0, x1, y1] = bounding_box.corners().map(f64::from);
        Self([x0, y0, x1 - x0, y1 - y0])
    }
}

/// An annotated object.
#[derive(Debug, Clone, PartialEq)]
pub struct TrueObject {
    /// The id of its image.
    pub image: u64,
    /// Its label.
    pub label: String,
    /// Its box.
    pub bounding_box: CocoBox,
    /// Its mask, in the size of the image.
    pub mask: Option<Arc<Mask>>,
    /// Whether it is a region of many objects. It need not be found, and objects found inside it are neither right nor
    /// wrong.
    pub is_crowd: bool,
}

/// A predicted object.
#[derive(Debug, Clone, PartialEq)]
pub struct FoundObject {
    /// The id of its image.
    pub image: u64,
    /// Its label.
    pub label: String,
    /// Its score, 0..1.
    pub score: f32,
    /// Its box.
    pub bounding_box: CocoBox,
    /// Its mask, in the size of the image.
    pub mask: Option<Arc<Mask>>,
}

/// What is compared: COCO's `iouType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IouType {
    /// The boxes (`bbox`).
    Boxes,
    /// The masks (`segm`). An object without a mask overlaps with none; pycocotools would use the box instead.
    Masks,
}

impl IouType {
    /// The intersection over union of an object and its prediction, 0..1. If the object is a crowd, it is the share of the
    /// prediction that is inside the crowd.
    pub(super) fn iou(self, truth: &TrueObject, found: &FoundObject) -> f64 {
        let (intersection, true_area, found_area) = match self {
            Self::Boxes => {
                let (truth, found) = (truth.bounding_box, found.bounding_box);
                (found.intersection_area(truth), truth.area(), found.area())
            }
            Self::Masks => {
                let (Some(truth), Some(found)) = (&truth.mask, &found.mask) else {
                    return 0.0;
                };
                if truth.size() != found.size() {
                    return 0.0;
                }
                (
                    truth.intersection_area(found) as f64,
                    truth.area() as f64,
                    found.area() as f64,
                )
            }
        };
        if intersection <= 0.0 {
            0.0
        } else if truth.is_crowd {
            intersection / found_area
        } else {
            // in the order of the reference, because the last digit depends on it
            intersection / (found_area + true_area - intersection)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::ImageSize;

    fn objects(is_crowd: bool, pixels: Option<[[bool; 4]; 2]>) -> (TrueObject, FoundObject) {
        let size = ImageSize {
            height: 2,
            width: 2,
        };
        let mask = |i: usize| pixels.map(|pixels| Arc::new(Mask::from_pixels(size, pixels[i])));
        let truth = TrueObject {
            image: 1,
            label: "cup".to_owned(),
            bounding_box: CocoBox([0.0, 0.0, 4.0, 2.0]),
            mask: mask(0),
            is_crowd,
        };
        let found = FoundObject {
            image: 1,
            label: "cup".to_owned(),
            score: 0.5,
            bounding_box: CocoBox([2.0, 0.0, 4.0, 1.0]),
            mask: mask(1),
        };
        (truth, found)
    }

    #[test]
    fn the_overlap_with_a_crowd_is_the_share_of_the_found_object() {
        let iou = |iou_type: IouType, is_crowd| {
            let pixels = [[true, true, true, false], [false, true, false, true]];
            let (truth, found) = objects(is_crowd, Some(pixels));
            iou_type.iou(&truth, &found)
        };
        assert_eq!(iou(IouType::Boxes, false), 2.0 / 10.0);
        assert_eq!(iou(IouType::Boxes, true), 2.0 / 4.0);
        assert_eq!(iou(IouType::Masks, false), 1.0 / 4.0);
        assert_eq!(iou(IouType::Masks, true), 1.0 / 2.0);
    }

    #[test]
    fn an_object_without_a_mask_or_area_overlaps_with_none() {
        let (mut truth, mut found) = objects(false, None);
        assert_eq!(IouType::Masks.iou(&truth, &found), 0.0);
        truth.bounding_box = CocoBox([0.0; 4]);
        found.bounding_box = CocoBox([0.0; 4]);
        assert_eq!(IouType::Boxes.iou(&truth, &found), 0.0);
        let (truth, found) = objects(true, Some([[false; 4]; 2]));
        assert_eq!(IouType::Masks.iou(&truth, &found), 0.0);
    }

    #[test]
    fn corners_become_a_corner_and_a_size() {
        let bounding_box = BoundingBox {
            x0: 1.0,
            y0: 2.0,
            x1: 4.0,
            y1: 8.5,
        };
        assert_eq!(CocoBox::from(bounding_box).0, [1.0, 2.0, 3.0, 6.5]);
    }
}
