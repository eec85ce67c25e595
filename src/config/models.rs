//! Which models run, where they come from, and where they compute.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use secrecy::{ExposeSecret, SecretString};

use crate::models::ops::InstructionSet;

/// Which models run, and where.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Models")]
pub struct ModelArgs {
    /// The detector: a name that `groundling models` lists, an id of the hub (OWNER/NAME), a folder, or a
    /// file of weights (.safetensors, .pth). "demo" knows coloured shapes only, and is built in.
    /// [default: grounding-dino-tiny]
    #[arg(long, env = "DETECTOR", value_name = "NAME|DIR|FILE")]
    pub detector: Option<String>,
    /// The segmenter, named in the same ways; "none" for boxes only.
    /// [default: mobile-sam on a CPU, sam-vit-base on a GPU]
    #[arg(long, env = "SEGMENTER", value_name = "NAME|DIR|FILE|none")]
    pub segmenter: Option<String>,
    /// The folder that models are looked up in first, and that prompts are remembered in.
    #[arg(long, env = "MODEL_DIR", default_value = "models", value_name = "DIR")]
    pub model_dir: PathBuf,
    /// Where to compute: "auto" is a GPU where the build and the machine have one.
    #[arg(
        long,
        env = "DEVICE",
        default_value = "auto",
        value_name = "auto|cpu|cuda[:N]"
    )]
    pub device: DeviceChoice,
    /// How numbers are kept. f16 and bf16 are less exact, and take half the memory on a GPU. On a CPU bf16 is for
    /// the products of weights alone, and faster on one with avx512_bf16; f16 is for GPUs.
    #[arg(long, env = "PRECISION", value_enum, default_value_t = Precision::F32)]
    pub precision: Precision,
    /// The short side in pixels that images are resized to for the detector, 64 to 2048. Smaller is faster, and
    /// misses small objects: the time falls with the square. [default: as the checkpoint says, 800]
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

/// How a CPU computes.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Models")]
pub struct CpuArgs {
    /// Threads that compute on the CPU, all requests together.
    /// [default: the cores that the process may use, limits of its container included]
    #[arg(long, env = "THREADS", value_name = "COUNT")]
    pub threads: Option<NonZeroUsize>,
    /// The best instruction set that may be used, to see what an older CPU does.
    #[arg(long, env = "GROUNDLING_INSTRUCTION_SET", value_enum, hide = true)]
    pub instruction_set: Option<InstructionSetChoice>,
}

/// Limits the instruction sets that kernels choose from.
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

/// The hub that models are fetched from: the settings every tool of it knows.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Models")]
pub struct HubArgs {
    /// The hub, or a mirror of it.
    #[arg(
        long,
        env = "HF_ENDPOINT",
        default_value = "https://huggingface.co",
        value_name = "URL"
    )]
    pub hf_endpoint: String,
    /// The folder of the hub's tools, with the cache in `hub` and the token in `token`.
    /// [default: ~/.cache/huggingface]
    #[arg(long, env = "HF_HOME", value_name = "DIR")]
    pub hf_home: Option<PathBuf>,
    /// The cache itself, where it is elsewhere. [default: hub in HF_HOME]
    #[arg(long, env = "HF_HUB_CACHE", value_name = "DIR")]
    pub hf_hub_cache: Option<PathBuf>,
    /// A token of the hub, for models that are not open to all.
    #[arg(long, env = "HF_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub hf_token: Option<SecretString>,
    /// Fetch nothing: models must be here already.
    #[arg(
        long,
        env = "HF_HUB_OFFLINE",
        value_name = "0|1",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "1",
        default_value = "0"
    )]
    pub hf_hub_offline: Switch,
}

impl HubArgs {
    fn home(&self) -> PathBuf {
        let home = |variable: &str| {
            let folder = std::env::var_os(variable).filter(|folder| !folder.is_empty());
            folder.map(PathBuf::from)
        };
        self.hf_home.clone().unwrap_or_else(|| {
            home("XDG_CACHE_HOME")
                .or_else(|| {
                    home("HOME")
                        .or_else(|| home("USERPROFILE"))
                        .map(|home| home.join(".cache"))
                })
                .unwrap_or_default()
                .join("huggingface")
        })
    }

    /// The cache's folder.
    pub fn cache(&self) -> PathBuf {
        let cache = self.hf_hub_cache.clone();
        cache.unwrap_or_else(|| self.home().join("hub"))
    }

    /// The token, of the setting or of the file that `hf auth login` writes.
    pub fn token(&self) -> Option<SecretString> {
        let stored = || std::fs::read_to_string(self.home().join("token")).ok();
        let token = self
            .hf_token
            .as_ref()
            .map(|token| token.expose_secret().to_owned());
        let token = token.or_else(stored)?;
        let token = token.trim();
        (!token.is_empty()).then(|| SecretString::from(token))
    }
}

/// How the Python backends name their models: taken where `--detector` and `--segmenter` say nothing.
#[derive(Debug, Clone, Default, Args)]
pub struct PythonArgs {
    /// The detector's weights; a path, or a name below `weights` of `GROUNDINGDINO_REPO_PATH`.
    #[arg(long, env = "GROUNDING_DINO_WEIGHTS", value_name = "FILE", hide = true)]
    pub grounding_dino_weights: Option<PathBuf>,
    /// The folder of the Grounding DINO repository.
    #[arg(long, env = "GROUNDINGDINO_REPO_PATH", value_name = "DIR", hide = true)]
    pub groundingdino_repo_path: Option<PathBuf>,
    /// Whether SAM cuts out.
    #[arg(long, env = "USE_SAM", value_name = "BOOL", hide = true)]
    pub use_sam: Option<Switch>,
    /// Whether MobileSAM cuts out; it goes before SAM.
    #[arg(long, env = "USE_MOBILE_SAM", value_name = "BOOL", hide = true)]
    pub use_mobile_sam: Option<Switch>,
    /// SAM's weights.
    #[arg(long, env = "SAM_CHECKPOINT", value_name = "FILE", hide = true)]
    pub sam_checkpoint: Option<PathBuf>,
    /// MobileSAM's weights.
    #[arg(long, env = "MOBILESAM_CHECKPOINT", value_name = "FILE", hide = true)]
    pub mobilesam_checkpoint: Option<PathBuf>,
    /// `SAM` or `MobileSAM`.
    #[arg(long, env = "SAM_CHOICE", value_name = "NAME", hide = true)]
    pub sam_choice: Option<String>,
    /// SAM's weights where `SAM_CHOICE` is `SAM`.
    #[arg(long, env = "VITH_CHECKPOINT", value_name = "FILE", hide = true)]
    pub vith_checkpoint: Option<PathBuf>,
}

/// Yes or no, in the words that Label Studio's and the hub's tools take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switch(pub bool);

impl FromStr for Switch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim().to_lowercase().as_str() {
            "1" | "true" | "yes" | "on" => Ok(Self(true)),
            "0" | "false" | "no" | "not" | "off" => Ok(Self(false)),
            _ => Err("it must be 1 or 0, true or false, yes or no, on or off".to_owned()),
        }
    }
}

/// Where to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    /// A GPU if there is one.
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of this number.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim().to_lowercase().as_str() {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" | "gpu" => Ok(Self::Cuda(0)),
            other => other
                .strip_prefix("cuda:")
                .and_then(|number| number.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| "it must be auto, cpu, cuda or cuda:N".to_owned()),
        }
    }
}

/// How numbers are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Precision {
    /// 32 bits.
    F32,
    /// 16 bits, of which 10 are digits.
    F16,
    /// 16 bits, of which 7 are digits, with the range of 32.
    Bf16,
}
