//! The server: its address, its clients and its limits.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use secrecy::SecretString;

use super::values::Switch;

/// The server.
#[derive(Debug, Args)]
#[command(next_help_heading = "Server")]
pub struct HttpArgs {
    /// Port to listen on.
    #[arg(long, env = "PORT", default_value_t = 9090)]
    pub port: u16,
    /// Address to listen on; with 0.0.0.0 other machines and containers can connect.
    #[arg(long, env = "BIND_ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub bind_address: IpAddr,
    /// Maximum number of annotators' requests that wait or are being processed; further ones are refused at once.
    #[arg(long, env = "MAX_QUEUE", default_value_t = 64)]
    pub max_queue: usize,
    /// Maximum size of a request, in bytes. Tasks include all their annotations and masks; some MB are normal.
    #[arg(long, env = "MAX_BODY_BYTES", default_value_t = 64 << 20, value_name = "BYTES")]
    pub max_body_bytes: usize,
    /// Origins whose web pages may send requests from a browser, separated by commas, such as
    /// <https://studio.example.org>. Label Studio's server is not a browser and needs no entry. If the server listens on
    /// loopback, requests may also use the hosts of these origins as its name.
    #[arg(long, env = "ALLOWED_ORIGINS", value_name = "ORIGINS")]
    pub allowed_origins: Option<String>,
    /// Where a typed prompt applies: "project" uses it for the project's next tasks too and makes it part of the model
    /// version; "off" uses it for its own request only. A prompt in the project's extra_params always applies.
    #[arg(long, env = "PROMPT_MEMORY", value_enum, default_value_t = PromptMemory::Project)]
    pub prompt_memory: PromptMemory,
    /// Add a typed phrase that finds something, and that no label knows, to the labels of the project in Label Studio. The
    /// token's user must be allowed to change the project. Annotators see a new label when they open the next task.
    #[arg(long, env = "ADD_LABELS", default_value = "0", value_name = "0|1")]
    pub add_labels: Switch,
    /// Serve a page at /playground on which people try prompts and thresholds on images of their own. It is served only if
    /// the server listens on loopback or requires credentials.
    #[arg(long, env = "PLAYGROUND", default_value = "on", value_name = "on|off")]
    pub playground: Switch,
    /// Further detectors that people can compare in the playground, separated by commas. Each is loaded when it is first
    /// chosen, and then takes its memory besides that of DETECTOR.
    #[arg(
        long,
        env = "PLAYGROUND_DETECTORS",
        value_name = "NAME[,NAME]",
        value_delimiter = ','
    )]
    pub playground_detectors: Vec<String>,
    /// Further segmenters, in the same way.
    #[arg(
        long,
        env = "PLAYGROUND_SEGMENTERS",
        value_name = "NAME[,NAME]",
        value_delimiter = ','
    )]
    pub playground_segmenters: Vec<String>,
    /// Time limit of a batch in seconds, below the 100 that Label Studio waits. The remaining tasks are computed in the
    /// background.
    #[arg(long, env = "PREDICT_DEADLINE_S", default_value_t = 80)]
    pub predict_deadline_s: u64,
    /// Also write a trace of all computations to this file, in Chrome's trace format, for <https://ui.perfetto.dev>. The
    /// file grows as long as the server runs.
    #[arg(long, env = "TRACE_FILE", value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// The user name that clients must send (HTTP basic authentication). [default: no authentication]
    #[arg(long, env = "BASIC_AUTH_USER", value_name = "USER")]
    pub basic_auth_user: Option<String>,
    /// The password that clients must send.
    #[arg(
        long,
        env = "BASIC_AUTH_PASS",
        value_name = "PASSWORD",
        hide_env_values = true
    )]
    pub basic_auth_pass: Option<SecretString>,
}

impl HttpArgs {
    /// What typed prompts change in their project.
    pub fn typed_prompts(&self) -> TypedPrompts {
        TypedPrompts {
            are_remembered: self.prompt_memory == PromptMemory::Project,
            add_labels: self.add_labels.0,
        }
    }
}

/// What typed prompts change in their project; by default nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TypedPrompts {
    /// Whether they apply to the next tasks too.
    pub are_remembered: bool,
    /// Whether phrases that no label knows become labels.
    pub add_labels: bool,
}

/// Where a typed prompt applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PromptMemory {
    /// For the project's next tasks too.
    Project,
    /// For the request only.
    Off,
}
