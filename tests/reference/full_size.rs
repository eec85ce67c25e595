//! Models of full size compared with the reference, one per process. `full_size.py` creates the models, runs this test
//! for each, and prints the table. README.md has the command.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::{D, DType, Device, IndexOp, Result, Tensor};
use groundling::models::grounding_dino::{self, GroundingDino, TextTokens};
use groundling::models::sam::{self, Family, PointLabel, Prompts, Sam};
use groundling::models::weights::{Architecture, Checkpoint};
use serde_json::{Map, Value, json};

use crate::compare::{Fixture, relative_difference};
use crate::segmenter::sort_by_score;

/// Largest allowed difference, relative to the largest number of the stage.
const TOLERANCE: f32 = 1e-3;
/// The same with weights in bf16. The measured differences are a fifth to a third of it.
const BF16_TOLERANCE: f32 = 0.2;
const CASES: [&str; 4] = ["single-0", "single-1", "single-2", "batch"];

/// The results of one model.
struct Run {
    tolerance: f32,
    /// For each stage the largest difference of all cases, relative to the stage's scale.
    differences: Map<String, Value>,
    /// A digest of the last stages' numbers in the first case. Equal weights give equal digests, in any file format.
    digest: u64,
}

impl Run {
    fn compare(&mut self, case: &str, stage: &str, ours: &Tensor, theirs: &Tensor) {
        self.record(case, stage, relative_difference(ours, theirs));
    }

    /// Records the largest `1 - IoU` of the masks of two sets of logits `[masks, height, width]`.
    fn compare_masks(&mut self, case: &str, stage: &str, ours: &Tensor, theirs: &Tensor) {
        let inside = |logits: &Tensor| logits.gt(0f32)?.to_dtype(DType::F32);
        let one_less_iou = || -> Result<Vec<f32>> {
            let (ours, theirs) = (inside(ours)?, inside(theirs)?);
            let both = (&ours * &theirs)?.sum((1, 2))?;
            let either = ours.maximum(&theirs)?.sum((1, 2))?;
            // two empty masks are equal
            let (both, either) = ((both + 1e-6)?, (either + 1e-6)?);
            (1.0 - (both / either)?)?.to_vec1()
        };
        let worst = one_less_iou().unwrap().into_iter().fold(0.0, f32::max);
        self.record(case, stage, worst);
    }

    fn record(&mut self, case: &str, stage: &str, difference: f32) {
        println!("{case:<9} {stage:<24} {difference:.1e}");
        let worst = self.differences.get(stage).and_then(Value::as_f64);
        let worst = worst.unwrap_or(0.0).max(f64::from(difference));
        self.differences.insert(stage.to_owned(), json!(worst));
        assert!(
            difference <= self.tolerance,
            "{case} {stage}: {difference:e} of the scale"
        );
    }

    fn add_to_digest(&mut self, output: &Tensor) {
        let numbers: Vec<f32> = output.flatten_all().unwrap().to_vec1().unwrap();
        for number in numbers {
            // FNV-1a
            self.digest = (self.digest ^ u64::from(number.to_bits())).wrapping_mul(0x100_0000_01b3);
        }
    }
}

#[test]
#[ignore = "needs the models that full_size.py makes"]
fn full_size_models_equal_the_reference() {
    let folder = PathBuf::from(std::env::var_os("GROUNDLING_FULL_SIZE").unwrap());
    let name = std::env::var("GROUNDLING_FULL_SIZE_MODEL").unwrap();
    // copies of a model in other formats have the model's expected values
    let model = name
        .strip_suffix("-original")
        .or(name.strip_suffix("-safetensors"))
        .unwrap_or(&name);
    let is_copy = model != name;
    let precision = std::env::var("GROUNDLING_FULL_SIZE_PRECISION");
    let (dtype, tolerance) = match precision.as_deref().unwrap_or("f32") {
        "f32" => (DType::F32, TOLERANCE),
        "bf16" => (DType::BF16, BF16_TOLERANCE),
        other => panic!("GROUNDLING_FULL_SIZE_PRECISION={other}: it must be f32 or bf16"),
    };
    let expected = folder.join(model).join("expected");
    let notes = fs::read_to_string(expected.join("notes.json")).unwrap();
    let notes: Value = serde_json::from_str(&notes).unwrap();
    // the reference needs too much memory for the batch of the largest models
    let is_computed = |case: &&str| notes["photographs"].get(*case).is_some();
    let mut cases: Vec<&str> = CASES.into_iter().filter(is_computed).collect();
    if is_copy {
        cases.truncate(1);
    }

    let checkpoint = Checkpoint::Folder(folder.join(&name));
    let mut run = Run {
        tolerance,
        differences: Map::new(),
        digest: 0xcbf2_9ce4_8422_2325,
    };
    let start = Instant::now();
    let architecture = checkpoint.open().unwrap().layout().architecture;
    let mut seconds = vec![];
    let (loaded, after_load) = match architecture {
        Architecture::GroundingDino => {
            let (weights, config) = checkpoint.open_model::<grounding_dino::Config>().unwrap();
            let model = weights
                .load(dtype, &Device::Cpu, |vb| GroundingDino::load(vb, &config))
                .unwrap();
            let loaded = (start.elapsed(), memory("VmHWM"));
            for case in cases {
                let start = Instant::now();
                detector(&model, case, &expected, &mut run).unwrap();
                seconds.push(start.elapsed().as_secs_f64());
            }
            loaded
        }
        Architecture::Sam => {
            let (weights, config) = checkpoint.open_model::<sam::Config>().unwrap();
            let model = weights
                .load(dtype, &Device::Cpu, |vb| Sam::load(vb, &config))
                .unwrap();
            let loaded = (start.elapsed(), memory("VmHWM"));
            for case in cases {
                let start = Instant::now();
                segmenter(&model, case, &expected, &mut run).unwrap();
                seconds.push(start.elapsed().as_secs_f64());
            }
            loaded
        }
    };
    let report = json!({
        "name": name,
        "load_seconds": loaded.as_secs_f64(),
        "peak_mib_after_load": after_load,
        "peak_mib": memory("VmHWM"),
        "case_seconds": seconds,
        "differences": run.differences,
        "digest": format!("{:016x}", run.digest),
    });
    let results = folder.join("results");
    fs::create_dir_all(&results).unwrap();
    fs::write(
        results.join(format!("{name}.json")),
        serde_json::to_string_pretty(&report).unwrap(),
    )
    .unwrap();
}

fn fixture(folder: &Path, case: &str) -> Fixture {
    Fixture::read(&folder.join(format!("{case}.safetensors")))
}

fn detector(model: &GroundingDino, case: &str, expected: &Path, run: &mut Run) -> Result<()> {
    let fixture = fixture(expected, case);
    let pixel_values = fixture.get("pixel_values");
    let tokens = TextTokens::new(&fixture.captions(), &Device::Cpu)?;

    let features = model.encode_image(&pixel_values, &fixture.valid_sizes())?;
    let enhanced = model.enhance(&features, &model.encode_text(&tokens)?, &tokens)?;
    let theirs = fixture.get("encoder.vision");
    run.compare(case, "image tokens", &enhanced.vision, &theirs);
    let theirs = fixture.get("encoder.text");
    run.compare(case, "text tokens", &enhanced.text, &theirs);

    // Of two tokens with nearly the same score, either may come first, and every query has its own content. So the
    // order of the scores is compared, and the following stages use the reference's order.
    let selection = model.query_selection();
    let candidates = selection.candidates(
        &enhanced.vision,
        &enhanced.text,
        &enhanced.text_bias,
        &features.pyramid,
    )?;
    let theirs = fixture.raw("proposals.topk").to_dtype(DType::U32)?;
    let count = theirs.dim(1)?;
    let (ordered, _) = candidates.scores.sort_last_dim(false)?;
    let selected = candidates.scores.gather(&theirs, 1)?;
    run.compare(
        case,
        "order of queries",
        &selected,
        &ordered.narrow(1, 0, count)?,
    );

    let proposals = selection.select(&candidates, theirs)?;
    let output = model.decode(&features, &enhanced, proposals)?;
    let logits = fixture.get("logits");
    let logits = logits.narrow(D::Minus1, 0, output.logits.dim(D::Minus1)?)?;
    run.compare(case, "logits", &output.logits, &logits);
    let boxes = fixture.get("pred_boxes");
    run.compare(case, "boxes", &output.pred_boxes, &boxes);
    if case == CASES[0] {
        run.add_to_digest(&output.logits);
        run.add_to_digest(&output.pred_boxes);
    }
    Ok(())
}

fn segmenter(model: &Sam, case: &str, expected: &Path, run: &mut Run) -> Result<()> {
    let fixture = fixture(expected, case);
    let embeddings = model.encode_image(&fixture.get("pixel_values"))?;
    let theirs = fixture.get("image_embeddings");
    run.compare(case, "image embeddings", &embeddings.coarse, &theirs);
    for (i, map) in embeddings.fine.iter().enumerate() {
        let key = match model.config().family {
            Family::Sam2 => format!("high_res.{i}"),
            Family::Sam | Family::SamHq => "hq_features".to_owned(),
        };
        if fixture.has(&key) {
            let map = map.permute((0, 3, 1, 2))?;
            run.compare(case, "finer maps", &map, &fixture.get(&key));
        }
    }
    let labels: Vec<PointLabel> = fixture
        .integers("input_labels")
        .iter()
        .map(|label| match label {
            0 => PointLabel::Background,
            _ => PointLabel::Foreground,
        })
        .collect();
    for i in 0..embeddings.coarse.dim(0)? {
        let boxes: Vec<Vec<f32>> = fixture.get("input_boxes").i(i)?.to_vec2()?;
        let points: Vec<Vec<Vec<f32>>> = fixture.get("input_points").i(i)?.to_vec3()?;
        let by_box = Prompts {
            boxes: Some(boxes.iter().map(|b| [b[0], b[1], b[2], b[3]]).collect()),
            ..Prompts::default()
        };
        let points = points.iter().map(|points| {
            let labels = labels[i * points.len()..].iter();
            points.iter().map(|p| (p[0], p[1])).zip(labels.copied())
        });
        let by_points = Prompts {
            points: Some(points.map(Iterator::collect).collect()),
            ..Prompts::default()
        };
        let embedding = embeddings.of_image(i)?;
        // as it is stored on disk
        let rounded = embedding
            .to_dtype(DType::F16)?
            .to_dtype(embedding.coarse.dtype())?;
        for (kind, prompts, multimask) in [("box", by_box, false), ("points", by_points, true)] {
            let mut masks = model.predict_masks(&embedding, &prompts, multimask)?;
            if model.config().family == Family::SamHq {
                sort_by_score(&mut masks)?;
            }
            // one mask for each of several boxes, several for one object's points
            let logits = masks.low_res_masks.flatten(0, 1)?;
            let scores = masks.iou_scores.flatten_all()?;
            let theirs = fixture.get(&format!("{kind}.low_res_masks")).i(i)?;
            run.compare(case, &format!("masks by {kind}"), &logits, &theirs);
            run.compare_masks(case, &format!("1 - IoU, {kind}"), &logits, &theirs);
            let mut warm = model.predict_masks(&rounded, &prompts, multimask)?;
            if model.config().family == Family::SamHq {
                sort_by_score(&mut warm)?;
            }
            let warm = warm.low_res_masks.flatten(0, 1)?;
            run.compare_masks(case, "1 - IoU, embedding in f16", &warm, &logits);
            let theirs = fixture.get(&format!("{kind}.iou_scores")).i(i)?;
            run.compare(case, &format!("IoU by {kind}"), &scores, &theirs);
            if case == CASES[0] {
                run.add_to_digest(&logits);
                run.add_to_digest(&scores);
            }
        }
    }
    Ok(())
}

/// A line of `/proc/self/status` in MiB; zero if it does not exist.
fn memory(line: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|text| text.starts_with(line));
    let kibibytes = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kibibytes.unwrap_or(0) >> 10
}
