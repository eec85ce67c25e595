//! The published weights compared with published values. Needs a network (7 GB are downloaded once), so it is run
//! manually: `cargo test --release --test reference published -- --ignored --nocapture`.
//!
//! The values of Grounding DINO are from transformers' `tests/models/grounding_dino` (the image of two cats), those of
//! SAM from `tests/models/sam` (the image of a car), those of SAM 2 from `tests/models/sam2` (the image of a truck).
//! The settings of the hub's tools (`HF_HOME`, `HF_ENDPOINT`, ...) and `MODEL_DIR` apply.

use std::sync::Arc;
use std::time::Duration;

use candle_core::{DType, Device, IndexOp, Tensor};
use clap::Parser;
use groundling::budget::Budget;
use groundling::checkpoints::hub::ProgressObserver;
use groundling::checkpoints::{Locator, Role};
use groundling::config::ModelArgs;
use groundling::detector::image_processor::ImageProcessor as DetectorImages;
use groundling::detector::text_processor::TextProcessor;
use groundling::detector::{DetectionOptions, Detector};
use groundling::label_studio::LabelStudio;
use groundling::media::guard::AllowedHosts;
use groundling::media::{Fetcher, FetcherConfig, ImageRequest};
use groundling::models::grounding_dino::{self, GroundingDino, TextTokens};
use groundling::models::sam::{self, PointLabel, Prompts, Sam};
use groundling::models::weights::Checkpoint;
use groundling::prompt::Prompt;
use groundling::segmenter::image_processor::{Fit, Frame, ImageProcessor as SegmenterImages};
use image::RgbImage;

const CATS: &str = "http://images.cocodataset.org/val2017/000000039769.jpg";
/// On the hub.
const CAR: &str = "ybelkada/segment-anything/resolve/main/assets/car.png";

#[derive(Debug, Parser)]
struct Settings {
    #[command(flatten)]
    models: ModelArgs,
}

struct PrintedProgress;

impl ProgressObserver for PrintedProgress {
    fn progress(&self, file: &str, bytes: u64, total: u64) {
        if bytes == total {
            println!("downloaded {file}, {total} bytes");
        }
    }

    fn waiting(&self, what: &str) {
        println!("{what}");
    }
}

fn settings() -> Settings {
    Settings::try_parse_from(["test"]).unwrap()
}

fn checkpoint(role: Role, name: &str) -> Checkpoint {
    let observer: Arc<dyn ProgressObserver> = Arc::new(PrintedProgress);
    let settings = settings().models.settings();
    let locator = Locator::new(settings.model_dir, settings.hub);
    locator.locate(role, name, &observer).unwrap()
}

fn picture(url: &str) -> RgbImage {
    let config = FetcherConfig {
        timeout: Duration::from_secs(60),
        max_bytes: 1 << 26,
        max_pixels: 1 << 26,
        // a mirror of the hub may be near
        allowed_hosts: AllowedHosts::parse("*"),
        local_files: None,
    };
    let fetcher = Fetcher::new(config, Budget::new(1 << 30));
    let request = ImageRequest {
        value: url,
        label_studio: &LabelStudio::new(None, None).unwrap(),
        task: None,
        login: None,
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(fetcher.unwrap().load(request)).unwrap()
}

/// Prints a table of the comparisons, and collects those whose difference is too large.
#[derive(Default)]
struct Table {
    failures: Vec<String>,
}

impl Table {
    fn compare(&mut self, what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
        if found.len() != expected.len() {
            println!("{what:<44} {} numbers, expected {expected:?}", found.len());
            self.failures
                .push(format!("{what}: {} numbers", found.len()));
            return;
        }
        let pairs = found.iter().zip(expected);
        let largest = pairs.map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        println!("{what:<44} {found:?} expected {expected:?} difference {largest:.1e}");
        if largest.is_nan() || largest > tolerance {
            self.failures.push(format!("{what}: {largest:e}"));
        }
    }

    fn close(self) {
        assert!(
            self.failures.is_empty(),
            "differences are too large: {}",
            self.failures.join(", ")
        );
    }
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
#[ignore = "fetches 690 MB"]
fn grounding_dino_tiny_gives_the_published_values() {
    let mut table = Table::default();
    let device = &Device::Cpu;
    let checkpoint = checkpoint(Role::Detector, "grounding-dino-tiny");
    let image = picture(CATS);

    let (weights, config) = checkpoint.open_model::<grounding_dino::Config>().unwrap();
    let model = weights
        .load(DType::F32, device, |vb| GroundingDino::load(vb, &config))
        .unwrap();
    let images: DetectorImages = checkpoint
        .config("preprocessor_config.json", &[])
        .unwrap()
        .unwrap();
    let tokenizer = checkpoint.read("tokenizer.json").unwrap().unwrap();
    let text = TextProcessor::from_bytes(&tokenizer, config.max_text_len).unwrap();
    let passes = text.passes(&Prompt::parse("a cat.").unwrap()).unwrap();
    let tokens = TextTokens::new(&[passes[0].caption.ids.clone()], device).unwrap();
    let batch = images.process(&[&image], DType::F32, device).unwrap();
    let features = model
        .encode_image(&batch.pixel_values, &batch.valid_sizes)
        .unwrap();
    let output = {
        let text = model.encode_text(&tokens).unwrap();
        model.detect(&features, &text, &tokens).unwrap()
    };
    // the image is a JPEG, which libraries decode slightly differently
    let logits = output.logits.i((0, ..3, ..3)).unwrap();
    let expected = [
        -4.8913, -0.1900, -0.2161, -4.9653, -0.3719, -0.3950, -5.9599, -3.3765, -3.3104,
    ];
    table.compare(
        "logits of the first three queries",
        &numbers(&logits),
        &expected,
        0.05,
    );
    let boxes = output.pred_boxes.i((0, ..3, ..3)).unwrap();
    let expected = [
        0.7674, 0.4136, 0.4572, 0.2566, 0.5463, 0.4760, 0.2585, 0.5442, 0.4641,
    ];
    table.compare(
        "boxes of the first three queries (cx, cy, w)",
        &numbers(&boxes),
        &expected,
        0.002,
    );

    let detector = Detector::load(&checkpoint, DType::F32, device).unwrap();
    let detect = |prompt: &str, box_threshold: f32, text_threshold: f32| {
        let options = DetectionOptions {
            box_threshold,
            text_threshold,
            nms_iou_threshold: 1.0,
            max_detections: None,
        };
        let prompt = Prompt::parse(prompt).unwrap();
        detector.detect(&image, &prompt, &options).unwrap()
    };
    let cats = detect("a cat.", 0.35, 0.25);
    let scores: Vec<f32> = cats.iter().map(|d| d.score).collect();
    table.compare("scores of \"a cat.\"", &scores, &[0.4526, 0.4082], 0.01);
    let first = cats[0].bounding_box.corners();
    table.compare(
        "the first box (pixels)",
        &first,
        &[344.81, 23.18, 637.40, 373.83],
        1.0,
    );
    let both = detect("a cat. a remote control.", 0.4, 0.3);
    for (phrase, score, corners) in [
        ("a cat", 0.479, [344.7, 23.11, 637.18, 374.28]),
        ("a cat", 0.438, [12.27, 51.91, 316.86, 472.44]),
        ("a remote control", 0.478, [38.57, 70.0, 176.78, 118.18]),
    ] {
        let near = |c: [f32; 4]| (c[0] - corners[0]).abs() + (c[1] - corners[1]).abs();
        let nearest = both
            .iter()
            .min_by(|a, b| {
                near(a.bounding_box.corners()).total_cmp(&near(b.bounding_box.corners()))
            })
            .unwrap();
        if nearest.phrase.as_deref() != Some(phrase) {
            table
                .failures
                .push(format!("{phrase:?} has the phrase {:?}", nearest.phrase));
        }
        table.compare(
            &format!("score of {phrase:?}"),
            &[nearest.score],
            &[score],
            0.01,
        );
        table.compare(
            &format!("box of {phrase:?} (pixels)"),
            &nearest.bounding_box.corners(),
            &corners,
            1.0,
        );
    }
    table.compare("objects found", &[both.len() as f32], &[3.0], 0.0);
    table.close();
}

#[test]
#[ignore = "fetches 380 MB"]
fn sam_vit_base_gives_the_published_values() {
    let mut table = Table::default();
    let device = &Device::Cpu;
    let checkpoint = checkpoint(Role::Segmenter, "sam-vit-base");
    let hub = settings().models.hub.hf_endpoint;
    let image = picture(&format!("{hub}/{CAR}"));
    let (weights, config) = checkpoint.open_model::<sam::Config>().unwrap();
    let model = weights
        .load(DType::F32, device, |vb| Sam::load(vb, &config))
        .unwrap();
    let images: SegmenterImages = checkpoint
        .config("preprocessor_config.json", &[])
        .unwrap()
        .unwrap();
    let (pixels, frame) = images
        .process(&image, (1024, Fit::LongestSide), DType::F32, device)
        .unwrap();
    let embeddings = model.encode_image(&pixels).unwrap();

    let predict = |point: Option<(f32, f32)>, corners: Option<[f32; 4]>| {
        let on = |(x, y): (f32, f32)| Frame::point(frame, (x, y));
        let prompts = Prompts {
            points: point.map(|point| vec![vec![(on(point), PointLabel::Foreground)]]),
            boxes: corners.map(|c| {
                let ((x0, y0), (x1, y1)) = (on((c[0], c[1])), on((c[2], c[3])));
                vec![[x0, y0, x1, y1]]
            }),
            ..Prompts::default()
        };
        let masks = model.predict_masks(&embeddings, &prompts, true).unwrap();
        let corner = masks.low_res_masks.i((0, 0, 0, ..3)).unwrap();
        (numbers(&masks.iou_scores), numbers(&corner))
    };
    let (scores, _) = predict(Some((400.0, 650.0)), None);
    table.compare("IoU by a point", &scores, &[0.9105, 0.9825, 0.9675], 2e-3);
    let (scores, corner) = predict(Some((820.0, 1080.0)), None);
    table.compare(
        "IoU by another point",
        &scores,
        &[0.6765, 0.9379, 0.8803],
        2e-3,
    );
    table.compare(
        "its mask's first logits",
        &corner,
        &[-2.8550, -2.7988, -2.9625],
        0.02,
    );
    let (scores, corner) = predict(Some((820.0, 1080.0)), Some([650.0, 900.0, 1000.0, 1250.0]));
    table.compare("IoU by point and box", &scores[2..], &[0.9566], 2e-3);
    table.compare(
        "its mask's first logits",
        &corner,
        &[-12.7729, -12.3665, -12.6061],
        0.05,
    );
    let (scores, _) = predict(None, Some([75.0, 275.0, 1725.0, 850.0]));
    table.compare("IoU by a box", &scores[2..], &[0.7937], 2e-3);
    table.close();
}

/// The scores of transformers' script that converts MM-Grounding-DINO and LLMDet
/// (`convert_mm_grounding_dino_to_hf.py`), for the image of two cats, "cat. remote." and a box threshold of 0.4.
const OF_CATS_AND_REMOTES: [(&str, [f32; 4]); 6] = [
    (
        "mm-grounding-dino-tiny-grit-v3det",
        [0.8381, 0.8204, 0.7970, 0.7175],
    ),
    ("mm-grounding-dino-base", [0.8418, 0.8364, 0.8342, 0.7885]),
    ("mm-grounding-dino-large", [0.8275, 0.8211, 0.7824, 0.7715]),
    ("llmdet-tiny", [0.8207, 0.7656, 0.7552, 0.7262]),
    ("llmdet-base", [0.8646, 0.8084, 0.7567, 0.6978]),
    ("llmdet-large", [0.8626, 0.8166, 0.7458, 0.7107]),
];

#[test]
#[ignore = "fetches 6 GB"]
fn mm_grounding_dino_and_llmdet_give_the_published_values() {
    let mut table = Table::default();
    let image = picture(CATS);
    for (name, expected) in OF_CATS_AND_REMOTES {
        let checkpoint = checkpoint(Role::Detector, name);
        let detector = Detector::load(&checkpoint, DType::F32, &Device::Cpu).unwrap();
        let options = DetectionOptions {
            box_threshold: 0.4,
            text_threshold: 0.3,
            nms_iou_threshold: 1.0,
            max_detections: None,
        };
        let prompt = Prompt::parse("cat. remote.").unwrap();
        let found = detector.detect(&image, &prompt, &options).unwrap();
        let scores: Vec<f32> = found.iter().map(|d| d.score).collect();
        table.compare(&format!("{name}: scores"), &scores, &expected, 0.01);
    }
    table.close();
}

/// The image of transformers' tests of SAM 2, on the hub.
const TRUCK: &str = "datasets/hf-internal-testing/sam2-fixtures/resolve/main/truck.jpg";

#[test]
#[ignore = "fetches 160 MB"]
fn sam2_hiera_tiny_gives_the_published_values() {
    let mut table = Table::default();
    let device = &Device::Cpu;
    let checkpoint = checkpoint(Role::Segmenter, "sam2.1-hiera-tiny");
    let hub = settings().models.hub.hf_endpoint;
    let image = picture(&format!("{hub}/{TRUCK}"));
    let (weights, config) = checkpoint.open_model::<sam::Config>().unwrap();
    let model = weights
        .load(DType::F32, device, |vb| Sam::load(vb, &config))
        .unwrap();
    let (pixels, frame) = SegmenterImages::default()
        .process(&image, (1024, Fit::Stretched), DType::F32, device)
        .unwrap();
    let embeddings = model.encode_image(&pixels).unwrap();
    let point = (frame.point((500.0, 375.0)), PointLabel::Foreground);
    let prompts = Prompts {
        points: Some(vec![vec![point]]),
        ..Prompts::default()
    };
    let masks = model.predict_masks(&embeddings, &prompts, true).unwrap();
    let mut scores = numbers(&masks.iou_scores);
    scores.sort_by(|a, b| b.total_cmp(a));
    // the image is a JPEG, and the reference resizes it with another library
    table.compare("IoU by a point", &scores, &[0.9547, 0.4932, 0.0427], 5e-3);
    table.close();
}
