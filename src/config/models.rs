//! Which models run, and how they compute.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{HubArgs, PythonArgs};
use crate::models::ops::InstructionSet;
use crate::pipeline::settings::{DeviceChoice, ModelSettings, Precision};

/// Which models run, and where.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Models")]
pub struct ModelArgs {
    /// The detector: a name that `groundling models` lists, a repository of the hub (OWNER/NAME), a folder, or a file
    /// of weights (.safetensors, .pth). "demo" is built in and detects only coloured shapes. With "none", only objects
    /// that annotators mark with smart tools are segmented.
    /// [default: grounding-dino-tiny]
    #[arg(long, env = "DETECTOR", value_name = "NAME|DIR|FILE|none")]
    pub detector: Option<String>,
    /// The segmenter, named in the same way; "none" to predict boxes only.
    /// [default: mobile-sam on a CPU, sam-vit-base on a GPU]
    #[arg(long, env = "SEGMENTER", value_name = "NAME|DIR|FILE|none")]
    pub segmenter: Option<String>,
    /// The folder in which models are searched first, and in which prompts are remembered.
    #[arg(long, env = "MODEL_DIR", default_value = "models", value_name = "DIR")]
    pub model_dir: PathBuf,
    /// The device that runs the models; "auto" is a GPU if the build and the machine have one.
    #[arg(
        long,
        env = "DEVICE",
        default_value = "auto",
        value_name = "auto|cpu|cuda[:N]"
    )]
    pub device: DeviceChoice,
    /// The precision of the models' numbers. On a GPU, f16 and bf16 take half the memory and are less exact. On a CPU,
    /// bf16 applies to matrix products only and is faster if the CPU has avx512_bf16; f16 is for GPUs only.
    #[arg(long, env = "PRECISION", value_enum, default_value_t = Precision::F32)]
    pub precision: Precision,
    /// The short side in pixels that images are resized to for the detector, 64 to 2048. A smaller value is faster (the
    /// time is proportional to its square) and misses small objects. [default: the checkpoint's value, 800]
    #[arg(
        long,
        env = "DETECTOR_SIZE",
        value_name = "PIXELS",
        value_parser = clap::value_parser!(u16).range(64..=2048)
    )]
    pub detector_size: Option<u16>,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub cpu: CpuArgs,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub hub: HubArgs,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub python: PythonArgs,
}

impl ModelArgs {
    /// The settings of the pipeline. Models that are not named are taken from the variables of the Python backends.
    pub fn settings(&self) -> ModelSettings {
        let (python, model_dir) = (&self.python, &self.model_dir);
        ModelSettings {
            detector: self.detector.clone().or_else(|| python.detector(model_dir)),
            segmenter: self
                .segmenter
                .clone()
                .or_else(|| python.segmenter(model_dir)),
            model_dir: model_dir.clone(),
            hub: self.hub.settings(),
            device: self.device,
            precision: self.precision,
            detector_size: self.detector_size.map(usize::from),
        }
    }
}

/// How a CPU computes.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Models")]
pub struct CpuArgs {
    /// Number of threads that compute on the CPU, shared by all requests.
    /// [default: the cores that the process may use; a container's CPU limit counts]
    #[arg(long, env = "THREADS", value_name = "COUNT")]
    pub threads: Option<NonZeroUsize>,
    /// The best instruction set that may be used, to measure the speed of an older CPU.
    #[arg(long, env = "GROUNDLING_INSTRUCTION_SET", value_enum, hide = true)]
    pub instruction_set: Option<InstructionSetChoice>,
}

/// The best instruction set that kernels may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum InstructionSetChoice {
    Portable,
    /// NEON on arm64.
    Avx2,
    Avx512,
    #[value(name = "avx512_bf16")]
    Avx512Bf16,
}

impl From<InstructionSetChoice> for InstructionSet {
    fn from(choice: InstructionSetChoice) -> Self {
        match choice {
            InstructionSetChoice::Portable => Self::Portable,
            InstructionSetChoice::Avx2 => Self::Vector,
            InstructionSetChoice::Avx512 => Self::Avx512,
            InstructionSetChoice::Avx512Bf16 => Self::Avx512Bf16,
        }
    }
}
