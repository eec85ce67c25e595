//! The server: who may reach it, and how much they may ask for.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use secrecy::SecretString;

/// The server.
#[derive(Debug, Args)]
#[command(next_help_heading = "Server")]
pub struct HttpArgs {
    /// Port to listen on.
    #[arg(long, env = "PORT", default_value_t = 9090)]
    pub port: u16,
    /// Address to listen on; 0.0.0.0 lets other machines and containers connect.
    #[arg(long, env = "BIND_ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub bind_address: IpAddr,
    /// Requests of annotators that may wait or be worked on; more are refused at once.
    #[arg(long, env = "MAX_QUEUE", default_value_t = 64)]
    pub max_queue: usize,
    /// Bytes of the largest request. Tasks come with all their annotations, masks included: some MB are normal.
    #[arg(long, env = "MAX_BODY_BYTES", default_value_t = 64 << 20, value_name = "BYTES")]
    pub max_body_bytes: usize,
    /// Origins whose pages may call from a browser, separated by commas, such as <https://studio.example.org>. Label
    /// Studio's server is none and needs no entry. Where the server listens on loopback, their hosts may also be named
    /// as its own.
    #[arg(long, env = "ALLOWED_ORIGINS", value_name = "ORIGINS")]
    pub allowed_origins: Option<String>,
    /// Whether the prompt that one annotator types counts for the project's next tasks, and is part of its model
    /// version: "project", or "off" for the annotator's own request only. A prompt in the project's extra_params counts
    /// in any case.
    #[arg(long, env = "PROMPT_MEMORY", value_enum, default_value_t = PromptMemory::Project)]
    pub prompt_memory: PromptMemory,
    /// Seconds for a batch, below the 100 that Label Studio waits; what is left then goes on behind.
    #[arg(long, env = "PREDICT_DEADLINE_S", default_value_t = 80)]
    pub predict_deadline_s: u64,
    /// Also write what is computed when to this file, in Chrome's trace format, for <https://ui.perfetto.dev>. It grows
    /// as long as the server runs.
    #[arg(long, env = "TRACE_FILE", value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// The user that must be given to connect; without one, everybody may.
    #[arg(long, env = "BASIC_AUTH_USER", value_name = "USER")]
    pub basic_auth_user: Option<String>,
    /// The password of that user.
    #[arg(
        long,
        env = "BASIC_AUTH_PASS",
        value_name = "PASSWORD",
        hide_env_values = true
    )]
    pub basic_auth_pass: Option<SecretString>,
}

/// How far a typed prompt counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PromptMemory {
    /// For the project's next tasks too.
    Project,
    /// For the request only.
    Off,
}
