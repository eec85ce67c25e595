//! The stages of whole models with random weights, on a device and in a dtype, against the CPU in f32.
//!
//! Each stage gets the CPU's results of the stages before it, so that a row names the stage that is wrong. The models have the
//! published sizes; in a quick run they have those of the demo models.

use std::time::Instant;

use candle_core::{DType, Device, Error, Result, Tensor};
use candle_nn::VarBuilder;

use super::random_weights::RandomWeights;
use super::report::{Found, RELATIVE, Row};
use crate::checkpoints::{Role, demo};
use crate::models::grounding_dino::{
    self, EnhancedFeatures, GroundingDino, TextTokens, VisionFeatures,
};
use crate::models::ops::checks::{Comparison, Extent};
use crate::models::ops::{Format, with_weight_format};
use crate::models::sam::config::ImageEncoderConfig;
use crate::models::sam::{self, ImageEmbeddings, PointLabel, Prompts, Sam, tiny_vit};
use crate::models::weights::{ModelConfig, tensor_dtype};
use crate::pipeline::device;

/// A model that is compared.
pub(super) enum Model {
    /// A detector, its name, and the rows and columns of its image.
    Detector(&'static str, Box<grounding_dino::Config>, [usize; 2]),
    /// A segmenter and its name.
    Segmenter(&'static str, Box<sam::Config>),
}

/// The models that are compared.
pub(super) fn models(extent: Extent) -> Vec<Model> {
    if extent == Extent::Quick {
        let models = [
            demo_config(Role::Detector)
                .map(|config| Model::Detector("demo detector", Box::new(config), [160, 213])),
            demo_config(Role::Segmenter)
                .map(|config| Model::Segmenter("demo segmenter", Box::new(config))),
        ];
        return models.into_iter().flatten().collect();
    }
    let mobile_sam = sam::Config {
        image_encoder: ImageEncoderConfig::TinyVit(tiny_vit::Config::default()),
        ..sam::Config::default()
    };
    vec![
        Model::Detector("Grounding DINO tiny", Box::default(), [800, 1066]),
        Model::Segmenter("SAM ViT-B", Box::default()),
        Model::Segmenter("MobileSAM", Box::new(mobile_sam)),
    ]
}

/// The configuration of a compiled-in model; `None` in a build without them.
fn demo_config<C: ModelConfig>(role: Role) -> Option<C> {
    let (_, config) = demo(role)?.open_model::<C>().ok()?;
    Some(config)
}

impl Model {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Detector(name, ..) | Self::Segmenter(name, _) => name,
        }
    }

    /// Compares the model in every dtype of the device.
    pub(super) fn rows(&self, device: &Device) -> Vec<Row> {
        let mut rows = vec![];
        if let Err(error) = self.compare(device, &mut rows) {
            rows.push(self.failed("model", &Device::Cpu, DType::F32, &error));
        }
        rows
    }

    /// Adds the rows of every dtype, also if the model fails in one of them.
    ///
    /// # Errors
    /// If the model fails on the CPU in f32, so that there is nothing to compare with.
    fn compare(&self, device: &Device, rows: &mut Vec<Row>) -> Result<()> {
        let mut in_dtypes = |compare: &dyn Fn(&mut Compared) -> Result<()>| {
            for dtype in dtypes(device) {
                if let Err(error) = compare(&mut Compared::new(self, device, dtype, rows)) {
                    rows.push(self.failed("model", device, dtype, &error));
                }
            }
        };
        match self {
            Self::Detector(_, config, size) => {
                let stages = DetectorStages::new(config, *size)?;
                in_dtypes(&|compared| {
                    let load_model = |vb: VarBuilder| GroundingDino::load(vb, config);
                    stages.compare(&load(device, compared.dtype, load_model)?, compared)
                });
            }
            Self::Segmenter(_, config) => {
                let stages = SegmenterStages::new(config)?;
                in_dtypes(&|compared| {
                    let load_model = |vb: VarBuilder| Sam::load(vb, config);
                    stages.compare(&load(device, compared.dtype, load_model)?, compared)
                });
            }
        }
        Ok(())
    }

    fn failed(&self, stage: &'static str, device: &Device, dtype: DType, error: &Error) -> Row {
        self.row((stage, String::new()), device, dtype, wrong(error), None)
    }

    fn row(
        &self,
        (stage, shape): (&'static str, String),
        device: &Device,
        dtype: DType,
        found: Found,
        seconds: Option<f64>,
    ) -> Row {
        Row {
            check: stage,
            used_by: self.name().to_owned(),
            shape,
            on: format!("{}, {}", device::name(device), dtype.as_str()),
            found,
            allowed: tolerance(dtype),
            unit: RELATIVE,
            seconds,
        }
    }
}

/// The dtypes that models run in on a device. On a CPU, f32 is what the others are compared with.
fn dtypes(device: &Device) -> Vec<DType> {
    match device.is_cpu() {
        true => vec![DType::BF16],
        false => vec![DType::F32, DType::F16, DType::BF16],
    }
}

/// The tolerance of a stage of up to a hundred layers: about forty roundings of a half, all in one direction. f32 has more room,
/// because a GPU adds up long sums in another order.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2e-2,
        DType::BF16 => 1.5e-1,
        _ => 1e-3,
    }
}

fn load<M>(device: &Device, dtype: DType, load: impl FnOnce(VarBuilder) -> Result<M>) -> Result<M> {
    let stored = tensor_dtype(dtype, device);
    let format = match (stored, dtype) {
        (DType::F32, DType::BF16) => Format::Bf16,
        _ => Format::F32,
    };
    let vb = VarBuilder::from_backend(Box::new(RandomWeights), stored, device.clone());
    with_weight_format(format, || load(vb))
}

/// Collects the rows of one model in one dtype.
struct Compared<'a> {
    model: &'a Model,
    device: &'a Device,
    dtype: DType,
    rows: &'a mut Vec<Row>,
}

impl<'a> Compared<'a> {
    fn new(model: &'a Model, device: &'a Device, dtype: DType, rows: &'a mut Vec<Row>) -> Self {
        Self {
            model,
            device,
            dtype,
            rows,
        }
    }

    /// A tensor of the CPU as an input of the compared model.
    fn input(&self, tensor: &Tensor) -> Result<Tensor> {
        let dtype = tensor_dtype(self.dtype, self.device);
        tensor.to_dtype(dtype)?.to_device(self.device)
    }

    /// Runs a stage twice, the second time with a clock, and adds a row with the difference of its result, or with the reason
    /// why there is none.
    fn stage(&mut self, stage: &'static str, expected: &Tensor, run: impl Fn() -> Result<Tensor>) {
        let timed = || {
            run()?;
            self.device.synchronize()?;
            let start = Instant::now();
            let result = run()?;
            self.device.synchronize()?;
            let seconds = start.elapsed().as_secs_f64();
            Ok((Comparison::between(&result, expected)?, seconds))
        };
        let (found, seconds) = match timed() {
            Ok((Comparison::Difference(difference), seconds)) => {
                (Found::Difference(difference), Some(seconds))
            }
            Ok((other, seconds)) => (Found::Wrong(other.to_string()), Some(seconds)),
            Err(error) => (wrong(&error), None),
        };
        let shape = format!("{:?}", expected.dims());
        let row = self
            .model
            .row((stage, shape), self.device, self.dtype, found, seconds);
        self.rows.push(row);
    }
}

/// An error, without candle's backtrace.
fn wrong(error: &Error) -> Found {
    let text = error.to_string();
    let reason = text.lines().next().unwrap_or_default();
    Found::Wrong(format!("it failed: {reason}"))
}

/// Random numbers of -1..1 with a seed of their own.
fn random(shape: &[usize], name: &str) -> Result<Tensor> {
    let backend = VarBuilder::from_backend(Box::new(RandomWeights), DType::F32, Device::Cpu);
    // a name of numbers that are added to tokens, so that their standard deviation is 1
    backend.pp(name).get(shape, "pos_embed")
}

/// The inputs of a detector, and its stages' results on the CPU in f32.
struct DetectorStages {
    pixels: Tensor,
    size: (usize, usize),
    captions: [Vec<u32>; 1],
    features: VisionFeatures,
    text: Tensor,
    enhanced: EnhancedFeatures,
    /// The tokens that become queries, best first, and their scores.
    indices: Tensor,
    scores: Tensor,
    logits: Tensor,
    boxes: Tensor,
}

/// "[CLS] cat . remote control . [SEP]" in BERT's uncased vocabulary; smaller vocabularies have these numbers too.
const CAPTION: [u32; 7] = [101, 4937, 1012, 6556, 2491, 1012, 102];

impl DetectorStages {
    fn new(config: &grounding_dino::Config, [height, width]: [usize; 2]) -> Result<Self> {
        let cpu = Device::Cpu;
        let model = load(&cpu, DType::F32, |vb| GroundingDino::load(vb, config))?;
        let (size, captions) = ((height, width), [CAPTION.to_vec()]);
        let pixels = random(&[1, 3, height, width], "pixels")?;
        let tokens = TextTokens::new(&captions, &cpu)?;
        let features = model.encode_image(&pixels, &[size])?;
        let text = model.encode_text(&tokens)?;
        let enhanced = model.enhance(&features, &text, &tokens)?;
        let selection = model.query_selection();
        let EnhancedFeatures {
            vision,
            text: enhanced_text,
            text_bias,
        } = &enhanced;
        let candidates =
            selection.candidates(vision, enhanced_text, text_bias, &features.pyramid)?;
        let (ordered, order) = candidates.scores.sort_last_dim(false)?;
        let count = config.num_queries.min(ordered.dim(1)?);
        let indices = order.narrow(1, 0, count)?.contiguous()?;
        let proposals = selection.select(&candidates, indices.clone())?;
        let output = model.decode(&features, &enhanced, proposals)?;
        Ok(Self {
            pixels,
            size,
            captions,
            features,
            text,
            indices,
            scores: ordered.narrow(1, 0, count)?,
            logits: output.logits,
            boxes: output.pred_boxes,
            enhanced,
        })
    }

    fn compare(&self, model: &GroundingDino, compared: &mut Compared) -> Result<()> {
        let tokens = TextTokens::new(&self.captions, compared.device)?;
        let pixels = compared.input(&self.pixels)?;
        let encode = || model.encode_image(&pixels, &[self.size]);
        compared.stage("image features", &self.features.hidden_states, || {
            Ok(encode()?.hidden_states)
        });
        compared.stage("text features", &self.text, || model.encode_text(&tokens));
        let features = VisionFeatures {
            hidden_states: compared.input(&self.features.hidden_states)?,
            ..encode()?
        };
        let text = compared.input(&self.text)?;
        let enhance = || model.enhance(&features, &text, &tokens);
        compared.stage("enhanced image", &self.enhanced.vision, || {
            Ok(enhance()?.vision)
        });
        compared.stage("enhanced text", &self.enhanced.text, || Ok(enhance()?.text));
        let enhanced = EnhancedFeatures {
            vision: compared.input(&self.enhanced.vision)?,
            text: compared.input(&self.enhanced.text)?,
            text_bias: compared.input(&self.enhanced.text_bias)?,
        };
        let indices = self.indices.to_device(compared.device)?;
        let selection = model.query_selection();
        let candidates = || {
            let EnhancedFeatures {
                vision,
                text,
                text_bias,
            } = &enhanced;
            selection.candidates(vision, text, text_bias, &features.pyramid)
        };
        compared.stage("query scores", &self.scores, || {
            candidates()?.scores.gather(&indices, 1)
        });
        // of two tokens with nearly the same score either may come first, so the CPU's order is used
        let decode = || {
            let proposals = selection.select(&candidates()?, indices.clone())?;
            model.decode(&features, &enhanced, proposals)
        };
        compared.stage("logits", &self.logits, || Ok(decode()?.logits));
        compared.stage("boxes", &self.boxes, || Ok(decode()?.pred_boxes));
        Ok(())
    }
}

/// The inputs of a segmenter, and its stages' results on the CPU in f32.
struct SegmenterStages {
    pixels: Tensor,
    prompts: [(&'static str, Prompts, bool); 2],
    embeddings: ImageEmbeddings,
    /// The logits and scores of each prompt.
    masks: Vec<(Tensor, Tensor)>,
}

impl SegmenterStages {
    fn new(config: &sam::Config) -> Result<Self> {
        let model = load(&Device::Cpu, DType::F32, |vb| Sam::load(vb, config))?;
        let side = config.input_side();
        let pixels = random(&[1, 3, side, side], "pixels")?;
        let at = |share: f32| share * side as f32;
        let boxes = [
            [0.1, 0.2, 0.4, 0.5],
            [0.5, 0.1, 0.9, 0.3],
            [0.3, 0.6, 0.6, 0.95],
        ];
        let boxes = Prompts {
            boxes: Some(boxes.map(|corners: [f32; 4]| corners.map(at)).to_vec()),
            ..Prompts::default()
        };
        let click = Prompts {
            points: Some(vec![vec![((at(0.53), at(0.41)), PointLabel::Foreground)]]),
            ..Prompts::default()
        };
        let prompts = [
            ("masks of boxes", boxes, false),
            ("masks of a click", click, true),
        ];
        let embeddings = model.encode_image(&pixels)?;
        let masks = prompts.iter().map(|(_, prompts, multimask)| {
            let masks = model.predict_masks(&embeddings, prompts, *multimask)?;
            Ok((masks.low_res_masks, masks.iou_scores))
        });
        Ok(Self {
            masks: masks.collect::<Result<_>>()?,
            pixels,
            prompts,
            embeddings,
        })
    }

    fn compare(&self, model: &Sam, compared: &mut Compared) -> Result<()> {
        let pixels = compared.input(&self.pixels)?;
        compared.stage("image embedding", &self.embeddings.coarse, || {
            Ok(model.encode_image(&pixels)?.coarse)
        });
        let fine = self.embeddings.fine.iter();
        let embeddings = ImageEmbeddings {
            coarse: compared.input(&self.embeddings.coarse)?,
            fine: fine.map(|map| compared.input(map)).collect::<Result<_>>()?,
        };
        for ((name, prompts, multimask), (logits, scores)) in self.prompts.iter().zip(&self.masks) {
            let predict = || model.predict_masks(&embeddings, prompts, *multimask);
            compared.stage(name, logits, || Ok(predict()?.low_res_masks));
            compared.stage("mask scores", scores, || Ok(predict()?.iou_scores));
        }
        Ok(())
    }
}
