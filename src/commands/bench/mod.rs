//! `groundling bench`: measures the time of each stage of a prediction on this machine, and the share of the
//! processor's peak that it reaches.

mod flops;
mod input;
mod peak;
mod report;
mod spans;
mod stages;
mod trace;

use std::fs;
use std::time::Instant;

use anyhow::{Context, bail};
use image::RgbImage;
use tracing_subscriber::layer::SubscriberExt;

use self::flops::Flops;
use self::input::{Input, fixed_boxes};
use self::report::{DetectorReport, ImageReport, Report, SegmenterReport};
use self::spans::Recorder;
use super::progress;
use crate::config::{BenchArgs, Half};
use crate::detector::{DetectionOptions, Detector};
use crate::geometry::{BoundingBox, ImageSize};
use crate::models::ops::InstructionSet;
use crate::pipeline::{ModelLoader, device};
use crate::prompt::Prompt;
use crate::segmenter::Segmenter;

/// Loads the models, runs the configured number of repetitions, and writes the measurements.
///
/// # Errors
/// If a setting is wrong, the models cannot be loaded, or one of them fails.
pub fn run(args: &BenchArgs) -> anyhow::Result<()> {
    let prompt = Prompt::parse(&args.prompt)?;
    let input = Input::new(args)?;
    let loader = ModelLoader::new(args.models.settings());
    let (names, precision) = (loader.names().clone(), loader.precision());
    let observer = progress::to_terminal();
    let start = Instant::now();
    let detector = match args.only {
        Some(Half::Segmenter) => None,
        _ => loader.load_detector(&observer)?,
    };
    let segmenter = match args.only {
        Some(Half::Detector) => None,
        _ => loader.load_segmenter(&observer)?,
    };
    let load_s = start.elapsed().as_secs_f64();
    if detector.is_none() && segmenter.is_none() {
        bail!("nothing to measure: DETECTOR, SEGMENTER and --only leave no model");
    }

    let device = loader.device()?;
    let recorder = Recorder::new(device);
    let mut bench = Bench {
        detector,
        segmenter,
        input,
        prompt,
        options: args.detection.settings(&loader.names().detector).options,
        boxes: args.boxes,
        size: ImageSize {
            height: 0,
            width: 0,
        },
        segmented: 0,
    };
    // between loading and running the models, so that the clock rate is similar to theirs
    let peak = device.is_cpu().then(peak::gflops);
    let subscriber = tracing_subscriber::registry().with(recorder.layer());
    let repetitions = tracing::subscriber::with_default(subscriber, || {
        let mut repetitions = vec![];
        for number in 0..args.warm_up + args.repeat {
            bench.repetition()?;
            let recorded = recorder.take();
            if number >= args.warm_up {
                repetitions.push(recorded);
            }
        }
        anyhow::Ok(repetitions)
    })?;
    if let Some(file) = &args.trace {
        fs::write(file, trace::chrome(&repetitions)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }

    let flops = bench.flops()?;
    let (total, stages) = stages::measured(&repetitions, &flops, peak);
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        device: device::name(device),
        precision,
        threads: rayon::current_num_threads(),
        instruction_set: InstructionSet::current().name(),
        image: ImageReport {
            source: bench.input.describe(),
            height: bench.size.height,
            width: bench.size.width,
        },
        detector: bench.describe_detector(names.detector)?,
        segmenter: bench.segmenter.as_ref().map(|_| SegmenterReport {
            name: names.segmenter,
            boxes: bench.segmented,
        }),
        repeat: args.repeat,
        warm_up: args.warm_up,
        load_s,
        peak_f32_gflops: peak,
        peak_memory_mib: report::peak_memory_mib(),
        total,
        stages,
    };
    super::print_result(match args.json {
        true => serde_json::to_string_pretty(&report)?,
        false => report.table(),
    });
    Ok(())
}

/// The models and their inputs.
struct Bench {
    detector: Option<Detector>,
    segmenter: Option<Segmenter>,
    input: Input,
    prompt: Prompt,
    options: DetectionOptions,
    /// Number of fixed boxes that replace the detector's boxes.
    boxes: Option<u32>,
    /// The size of the image, once it is decoded.
    size: ImageSize,
    /// Number of boxes that the last repetition segmented.
    segmented: usize,
}

impl Bench {
    /// Runs the pipeline once, on one image and one prompt.
    fn repetition(&mut self) -> anyhow::Result<()> {
        let _span = tracing::debug_span!("run").entered();
        let image = self.input.image()?;
        self.size = ImageSize::of(&image);
        let found = match &self.detector {
            Some(detector) => {
                let found = detector.detect(&image, &self.prompt, &self.options)?;
                found.into_iter().map(|d| d.bounding_box).collect()
            }
            None => vec![],
        };
        let boxes = match (self.boxes, &self.detector) {
            (Some(count), _) => fixed_boxes(count, self.size),
            (None, Some(_)) => found,
            (None, None) => fixed_boxes(1, self.size),
        };
        self.segmented = self.segment(&image, &boxes)?;
        Ok(())
    }

    /// Segments the boxes, if there are any; returns their number.
    fn segment(&self, image: &RgbImage, boxes: &[BoundingBox]) -> anyhow::Result<usize> {
        match &self.segmenter {
            Some(segmenter) if !boxes.is_empty() => {
                let encoded = segmenter.encode(image)?;
                Ok(segmenter.segment_boxes(&encoded, boxes)?.len())
            }
            _ => Ok(0),
        }
    }

    /// The operations of each stage in one repetition.
    fn flops(&self) -> anyhow::Result<Flops> {
        let mut flops = Flops::default();
        if let Some(detector) = &self.detector {
            let tokens = detector.token_counts(&self.prompt)?;
            flops.add_detector(detector.config(), detector.input_size(self.size), &tokens);
        }
        if let Some(segmenter) = &self.segmenter {
            flops.add_segmenter(segmenter.config(), self.segmented);
        }
        Ok(flops)
    }

    fn describe_detector(&self, name: String) -> anyhow::Result<Option<DetectorReport>> {
        let Some(detector) = &self.detector else {
            return Ok(None);
        };
        let size = detector.input_size(self.size);
        Ok(Some(DetectorReport {
            name,
            input_height: size.height,
            input_width: size.width,
            prompt: self.prompt.to_string(),
            tokens: detector.token_counts(&self.prompt)?,
        }))
    }
}
