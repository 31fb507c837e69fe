//! `healthcheck`: asks a running server whether it is well, for containers that have no curl.

use std::time::Duration;

use anyhow::{Context as _, Result};
use petnet_serve::Settings;
use ureq::tls::TlsConfig;

const PATIENCE: Duration = Duration::from_secs(3);

/// Ask the server in this container whether it is alive; exits with 1 if not.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  HEALTHCHECK CMD [\"/petnet-serve\", \"healthcheck\"]")]
pub(crate) struct Healthcheck {
    /// Address to ask [default: /livez on this machine, at the port that the server would take]
    #[arg(long)]
    url: Option<String>,
}

impl Healthcheck {
    pub(crate) fn run(self, settings: &Settings) -> Result<()> {
        let scheme = if settings.tls_cert.is_some() { "https" } else { "http" };
        let here = || format!("{scheme}://127.0.0.1:{}/livez", settings.port);
        let url = self.url.unwrap_or_else(here);
        // The certificate names the service, not this machine.
        let tls = TlsConfig::builder().disable_verification(true).build();
        let config = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).tls_config(tls);
        ureq::Agent::new_with_config(config.build())
            .get(&url)
            .call()
            .with_context(|| url.clone())?;
        Ok(())
    }
}
