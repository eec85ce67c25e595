//! The hub that models are downloaded from: the settings that all tools of the hub share.

use std::path::PathBuf;

use clap::Args;
use secrecy::{ExposeSecret, SecretString};

use super::values::Switch;
use crate::checkpoints::hub::HubSettings;

/// The hub that models are downloaded from: the settings that all tools of the hub share.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Models")]
pub struct HubArgs {
    /// The hub's URL, or the URL of a mirror.
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
    /// The folder of the cache. [default: hub in HF_HOME]
    #[arg(long, env = "HF_HUB_CACHE", value_name = "DIR")]
    pub hf_hub_cache: Option<PathBuf>,
    /// A token of the hub, for models that are not public.
    #[arg(long, env = "HF_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub hf_token: Option<SecretString>,
    /// Download nothing: only models on this machine can be used.
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
    /// The settings of the hub's client.
    pub fn settings(&self) -> HubSettings {
        HubSettings {
            endpoint: self.hf_endpoint.clone(),
            cache: self.cache(),
            token: self.token(),
            is_offline: self.hf_hub_offline.0,
        }
    }

    fn home(&self) -> PathBuf {
        let folder_in = |variable: &str| {
            let folder = std::env::var_os(variable).filter(|folder| !folder.is_empty());
            folder.map(PathBuf::from)
        };
        self.hf_home.clone().unwrap_or_else(|| {
            folder_in("XDG_CACHE_HOME")
                .or_else(|| {
                    folder_in("HOME")
                        .or_else(|| folder_in("USERPROFILE"))
                        .map(|home| home.join(".cache"))
                })
                .unwrap_or_default()
                .join("huggingface")
        })
    }

    fn cache(&self) -> PathBuf {
        let cache = self.hf_hub_cache.clone();
        cache.unwrap_or_else(|| self.home().join("hub"))
    }

    /// The token from the setting, else from the file that `hf auth login` writes.
    fn token(&self) -> Option<SecretString> {
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
