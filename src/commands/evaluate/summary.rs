//! The numbers of an evaluation: as JSON for programs, as tables for people.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Compared, Comparison, print_table};
use crate::commands::print_result;
use crate::evaluation::{
    AveragePrecision, IouType, OperatingPoint, ThresholdCurve, average_precision, threshold_curves,
};

/// The numbers of one detector.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    pub(super) detector: String,
    /// groundling's version and the models' names.
    models: String,
    images: usize,
    /// COCO's average precision of the boxes; null if nothing true has a box.
    #[serde(rename = "box")]
    boxes: Option<AveragePrecision>,
    /// That of the masks; null if nothing true has a mask.
    mask: Option<AveragePrecision>,
    /// The numbers of all labels together at the thresholds of the settings.
    overall: OperatingPoint,
    /// The common threshold with the highest F1; null if nothing found is correct.
    pub(super) best_threshold: Option<OperatingPoint>,
    pub(super) labels: Vec<LabelSummary>,
    #[serde(skip)]
    pub(super) curves: BTreeMap<String, ThresholdCurve>,
}

/// The numbers of one label. Precision, recall and F1 are at the threshold of the settings and IoU 0.5.
#[derive(Debug, Serialize)]
pub(super) struct LabelSummary {
    pub(super) label: String,
    /// Number of annotated objects.
    objects: usize,
    /// The box threshold of the settings.
    threshold: f32,
    precision: Option<f64>,
    recall: Option<f64>,
    f1: Option<f64>,
    ap: Option<f64>,
    ap50: Option<f64>,
    /// The mean IoU of the masks of correct objects.
    mask_iou: Option<f64>,
    /// The threshold with the highest F1; null if nothing found is correct.
    pub(super) best_threshold: Option<f32>,
    /// The numbers at the best threshold; without one, those if nothing is found.
    best: OperatingPoint,
}

impl Summary {
    pub(super) fn new(compared: &Compared) -> Self {
        let (main, iou_type) = compared.main();
        let precisions = |comparison: &Comparison, iou_type| {
            average_precision(&comparison.truth, &comparison.found, iou_type)
        };
        let boxes = precisions(&compared.boxes, IouType::Boxes);
        let masks = compared
            .masks
            .as_ref()
            .map(|masks| precisions(masks, IouType::Masks));
        let of_labels = match iou_type {
            IouType::Boxes => &boxes.labels,
            IouType::Masks => &masks.as_ref().unwrap_or(&boxes).labels,
        };
        let curves = threshold_curves(&main.truth, &main.found, iou_type, compared.lowest);
        // the masks of a Label Studio project are regions of their own
        let mask_curves = compared.masks.as_ref().map(|masks| {
            threshold_curves(&masks.truth, &masks.found, IouType::Masks, compared.lowest)
        });
        let mut labels = vec![];
        for (label, curve) in &curves {
            let threshold = compared.threshold(label);
            let now = curve.at(threshold);
            let best = curve.best();
            let precision = of_labels.get(label).copied().flatten();
            let mask_iou = mask_curves.as_ref().and_then(|curves| curves.get(label));
            labels.push(LabelSummary {
                label: label.clone(),
                objects: now.true_objects,
                threshold,
                precision: now.precision,
                recall: now.recall,
                f1: now.f1,
                ap: precision.map(|precision| precision.ap),
                ap50: precision.map(|precision| precision.ap50),
                mask_iou: mask_iou.and_then(|curve| curve.at(threshold).mean_mask_iou),
                best_threshold: best.map(|best| best.threshold),
                best: best.unwrap_or(curve.at(1.0)),
            });
        }
        Self {
            detector: compared.detector.clone(),
            models: compared.models.clone(),
            images: compared.images.len(),
            boxes: boxes.overall,
            mask: masks.and_then(|masks| masks.overall),
            overall: overall(compared, &curves),
            best_threshold: ThresholdCurve::merged(curves.values()).best(),
            labels,
            curves,
        }
    }

    /// The average precisions of what was compared, with names for people.
    pub(super) fn average_precisions(
        &self,
    ) -> impl Iterator<Item = (&'static str, AveragePrecision)> {
        let both = [("Boxes", self.boxes), ("Masks", self.mask)];
        both.into_iter().filter_map(|(name, ap)| Some((name, ap?)))
    }

    /// The heads of the table of labels.
    pub(super) fn table_heads(&self) -> [&'static str; 12] {
        [
            "label",
            "objects",
            "AP50",
            "mask IoU",
            "threshold",
            "precision",
            "recall",
            "F1",
            "best threshold",
            "precision",
            "recall",
            "F1",
        ]
    }

    /// The rows of the table of labels.
    pub(super) fn table_rows(&self) -> Vec<Vec<String>> {
        self.labels.iter().map(label_row).collect()
    }

    /// The best threshold of each label that has one.
    pub(super) fn best_thresholds(&self) -> BTreeMap<String, f32> {
        let labels = self.labels.iter();
        labels
            .filter_map(|label| Some((label.label.clone(), label.best_threshold?)))
            .collect()
    }
}

impl Compared {
    /// The box threshold of a label by the settings.
    pub(super) fn threshold(&self, label: &str) -> f32 {
        let threshold = self.thresholds.get(label).copied();
        threshold.unwrap_or(self.lowest).max(self.lowest)
    }
}

/// The numbers of all labels together, each at its own threshold.
fn overall(compared: &Compared, curves: &BTreeMap<String, ThresholdCurve>) -> OperatingPoint {
    let points = curves
        .iter()
        .map(|(label, curve)| curve.at(compared.threshold(label)));
    sum(points)
}

/// The numbers of several labels together.
fn sum(points: impl Iterator<Item = OperatingPoint>) -> OperatingPoint {
    let points: Vec<OperatingPoint> = points.collect();
    let count = |part: fn(&OperatingPoint) -> usize| points.iter().map(part).sum::<usize>();
    let (true_objects, found, correct) = (
        count(|point| point.true_objects),
        count(|point| point.found),
        count(|point| point.correct),
    );
    let share = |all: usize| (all > 0).then(|| correct as f64 / all as f64);
    OperatingPoint {
        threshold: points
            .iter()
            .map(|point| point.threshold)
            .fold(0.0, f32::max),
        true_objects,
        found,
        correct,
        precision: share(found),
        recall: share(true_objects),
        f1: (true_objects + found > 0)
            .then(|| 2.0 * correct as f64 / (true_objects + found) as f64),
        mean_mask_iou: None,
    }
}

/// Prints the numbers of each detector.
///
/// # Errors
/// If they cannot be written as JSON.
pub(super) fn print(summaries: &[Summary], as_json: bool) -> serde_json::Result<()> {
    if as_json {
        let json = match summaries {
            [summary] => serde_json::to_string_pretty(summary)?,
            summaries => serde_json::to_string_pretty(summaries)?,
        };
        print_result(json);
        return Ok(());
    }
    if summaries.len() > 1 {
        let rows: Vec<Vec<String>> = summaries.iter().map(compared_row).collect();
        print_table(
            &[
                "detector",
                "box AP",
                "box AP50",
                "mask AP",
                "precision",
                "recall",
                "F1",
                "best F1",
            ],
            &rows,
        );
        print_result("");
    }
    for summary in summaries {
        print_detector(summary);
    }
    Ok(())
}

fn compared_row(summary: &Summary) -> Vec<String> {
    let boxes = summary.boxes;
    let best = summary.best_threshold;
    vec![
        summary.detector.clone(),
        number(boxes.map(|ap| ap.ap)),
        number(boxes.map(|ap| ap.ap50)),
        number(summary.mask.map(|ap| ap.ap)),
        number(summary.overall.precision),
        number(summary.overall.recall),
        number(summary.overall.f1),
        number(best.and_then(|best| best.f1)),
    ]
}

fn print_detector(summary: &Summary) {
    print_result(format_args!(
        "{}: {} images, {} objects",
        summary.models, summary.images, summary.overall.true_objects
    ));
    for (name, AveragePrecision { ap, ap50 }) in summary.average_precisions() {
        print_result(format_args!("{name}: AP {ap:.3}, AP50 {ap50:.3}"));
    }
    print_table(&summary.table_heads(), &summary.table_rows());
    if let Some(best) = summary.best_threshold {
        print_result(format_args!(
            "all labels: F1 {} at the thresholds of the settings, {} at the best common threshold {}, {} at the best threshold of each label",
            number(summary.overall.f1),
            number(best.f1),
            best.threshold,
            number(sum(summary.labels.iter().map(|label| label.best)).f1),
        ));
    }
    print_result("");
}

fn label_row(label: &LabelSummary) -> Vec<String> {
    let best = &label.best;
    vec![
        label.label.clone(),
        label.objects.to_string(),
        number(label.ap50),
        number(label.mask_iou),
        format!("{:.2}", label.threshold),
        number(label.precision),
        number(label.recall),
        number(label.f1),
        label
            .best_threshold
            .map_or("-".to_owned(), |best| best.to_string()),
        number(best.precision),
        number(best.recall),
        number(best.f1),
    ]
}

/// Three decimals; a dash if there is no number.
pub(super) fn number(value: Option<f64>) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.3}"))
}
