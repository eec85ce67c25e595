//! Label Studio's address and token.

use clap::Args;
use secrecy::{ExposeSecret, SecretString};

/// Label Studio's address and token.
#[derive(Debug, Clone, Args)]
pub struct LabelStudioArgs {
    /// Label Studio's address as seen from this machine, such as http://localhost:8080.
    #[arg(long, env = "LABEL_STUDIO_HOST", value_name = "URL")]
    pub label_studio_host: Option<String>,
    /// Another name of the same setting.
    #[arg(long, env = "LABEL_STUDIO_URL", value_name = "URL", hide = true)]
    pub label_studio_url: Option<String>,
    /// Label Studio's access token (Account & Settings): a personal access token, or a legacy token.
    #[arg(
        long,
        env = "LABEL_STUDIO_ACCESS_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true
    )]
    pub label_studio_access_token: Option<SecretString>,
    /// Another name of the same setting.
    #[arg(
        long,
        env = "LABEL_STUDIO_API_KEY",
        value_name = "TOKEN",
        hide = true,
        hide_env_values = true
    )]
    pub label_studio_api_key: Option<SecretString>,
}

impl LabelStudioArgs {
    /// Label Studio's address under either name; an empty one counts as unset.
    pub fn host(&self) -> Option<&str> {
        [&self.label_studio_host, &self.label_studio_url]
            .into_iter()
            .flatten()
            .map(|host| host.trim())
            .find(|host| !host.is_empty())
    }

    /// The token under either name, trimmed; an empty one counts as unset.
    pub fn token(&self) -> Option<SecretString> {
        [&self.label_studio_access_token, &self.label_studio_api_key]
            .into_iter()
            .flatten()
            .map(|token| SecretString::from(token.expose_secret().trim()))
            .find(|token| !token.expose_secret().is_empty())
    }
}
