//! The subcommand `healthcheck`: requests `/livez` of a running server, for container images without curl.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result};
use petnet_serve::Settings;
use ureq::tls::TlsConfig;

const TIMEOUT: Duration = Duration::from_secs(3);

/// Request /livez of the server in this container; the exit status is 1 unless it returns 200 within 3 s.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  HEALTHCHECK CMD [\"/petnet-serve\", \"healthcheck\"]")]
pub(crate) struct Healthcheck {
    /// URL to request [default: /livez of this machine, at the port that the settings name]
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
        // The certificate is issued for the service's name, not for a loopback address.
        let tls = TlsConfig::builder().disable_verification(true).build();
        let config = ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).tls_config(tls);
        ureq::Agent::new_with_config(config.build())
            .get(&url)
            .call()
            .with_context(|| url.clone())?;
        Ok(())
    }
}

/// The address at which a server with this listening address is reachable: the loopback address if it is unspecified.
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
    fn an_unspecified_address_is_reached_by_the_loopback_address() {
        for (listening, expected) in [
            ("0.0.0.0:8000", "127.0.0.1:8000"),
            ("[::]:8000", "[::1]:8000"),
            ("192.0.2.7:80", "192.0.2.7:80"),
        ] {
            assert_eq!(reachable(listening.parse().unwrap()), expected.parse().unwrap());
        }
    }
}
