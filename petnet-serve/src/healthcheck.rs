//! `healthcheck`: asks a running server whether it is well, for containers that have no curl.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
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
        let url = match self.url {
            Some(url) => url,
            None => format!("{scheme}://{}/livez", reachable(settings.address()?)),
        };
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

/// The address to ask a server that listens here: of one that listens everywhere, this machine's own.
fn reachable(listening: SocketAddr) -> SocketAddr {
    let ip = match listening.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listening.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_asked_where_it_listens() {
        for (listening, asked) in [
            ("0.0.0.0:8000", "127.0.0.1:8000"),
            ("[::]:8000", "[::1]:8000"),
            ("192.0.2.7:80", "192.0.2.7:80"),
        ] {
            assert_eq!(reachable(listening.parse().unwrap()), asked.parse().unwrap());
        }
    }
}
