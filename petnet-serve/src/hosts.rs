//! The allow list of hosts that images may be fetched from, and the test for publicly reachable addresses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use bytes::Bytes;
use http_body_util::Empty;
use hyper::header::{ACCEPT, ACCEPT_ENCODING, CONNECTION, HOST, USER_AGENT};
use hyper::{Request, StatusCode, Uri};
use serde::{Serialize, Serializer};
use tokio_rustls::rustls::pki_types::ServerName;
use url::{Host, Position, Url};

const USER_AGENT_VALUE: &str = concat!("petnet-serve/", env!("CARGO_PKG_VERSION"));

/// IPv4 networks that are not globally reachable: IANA's special-purpose registry (RFC 6890, RFC 8190), multicast (RFC 5771),
/// and 168.63.129.16, the address of the host of Azure's virtual machines.
const RESERVED_V4: [(Ipv4Addr, u32); 16] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(168, 63, 129, 16), 32),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];
/// Global unicast addresses (RFC 4291). Loopback, unique local, link-local, site-local, multicast, IPv4-compatible and
/// discard-only addresses and SRv6 segment identifiers lie outside.
const GLOBAL_V6: (Ipv6Addr, u32) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);
/// Networks within [`GLOBAL_V6`] that are not globally reachable: protocol assignments with Teredo and benchmarking
/// (RFC 2928), documentation (RFC 3849, RFC 9637) and 6to4 (RFC 3056).
const RESERVED_V6: [(Ipv6Addr, u32); 4] = [
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
];
/// The prefix of IPv6 addresses that a NAT64 gateway translates to IPv4 (RFC 6052).
const NAT64: (Ipv6Addr, u32) = (Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96);

/// True for addresses of the public Internet; `IpAddr::is_global` is not stable yet.
pub(crate) fn is_global(ip: IpAddr) -> bool {
    let in_v4 = |ip: Ipv4Addr, (network, length): (Ipv4Addr, u32)| {
        (ip.to_bits() ^ network.to_bits()) >> (32 - length) == 0
    };
    let in_v6 = |ip: Ipv6Addr, (network, length): (Ipv6Addr, u32)| {
        (ip.to_bits() ^ network.to_bits()) >> (128 - length) == 0
    };
    match ip.to_canonical() {
        IpAddr::V4(ip) => !RESERVED_V4.iter().any(|network| in_v4(ip, *network)),
        IpAddr::V6(ip) if in_v6(ip, NAT64) => {
            let [.., a, b, c, d] = ip.octets();
            is_global(Ipv4Addr::new(a, b, c, d).into())
        }
        IpAddr::V6(ip) => {
            in_v6(ip, GLOBAL_V6) && !RESERVED_V6.iter().any(|network| in_v6(ip, *network))
        }
    }
}

/// Reasons for which an image could not be fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FetchError {
    Malformed(&'static str),
    NotListed,
    /// The name resolves to an address that is not public.
    NotPublic,
    /// No address of the name, no connection, or no valid certificate.
    Unreachable,
    /// A redirect to an address that is malformed or not on the list.
    RedirectNotListed,
    TooManyRedirects,
    /// A status other than 200.
    Status(StatusCode),
    /// The response has a Content-Encoding.
    Encoded,
    /// More than so many bytes.
    TooLarge(usize),
    /// The connection ended or violated the protocol.
    Broken,
    TimedOut,
    /// No permit for a fetch became free in time.
    Busy,
}

/// Hosts that images may be fetched from: `a.example,*.b.example,cdn.c.example:8443,http://10.0.0.5:9000`.
///
/// An entry permits one scheme (https without one), one host or the sub-domains of one, and one port (the scheme's default
/// without one). An entry that is an IP address permits that address, in whichever network it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedHosts(Vec<AllowedHost>);

/// One entry of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
struct AllowedHost {
    scheme: &'static str,
    subdomains: bool,
    host: Host<String>,
    port: u16,
}

impl FromStr for AllowedHosts {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        text.split(',').map(|entry| entry.trim().parse()).collect::<Result<_>>().map(Self)
    }
}

impl FromStr for AllowedHost {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        ensure!(!text.is_empty(), "an entry is empty; name hosts, separated by commas");
        let (scheme, rest) = match text.split_once("://") {
            None => ("https", text),
            Some(("https", rest)) => ("https", rest),
            Some(("http", rest)) => ("http", rest),
            Some((other, _)) => bail!("`{text}`: `{other}` is neither http nor https"),
        };
        let (subdomains, rest) =
            rest.strip_prefix("*.").map_or((false, rest), |domain| (true, domain));
        let forbidden = |c: char| c.is_whitespace() || c.is_control() || "*/\\?#@%".contains(c);
        ensure!(
            !rest.contains(forbidden),
            "`{text}`: an entry is a host or `*.` and a domain, with a port where it is not the default"
        );
        let url = Url::parse(&format!("{scheme}://{rest}"));
        let url = url.map_err(|error| anyhow!("`{text}`: {error}"))?;
        let (host, port) = endpoint(&url).with_context(|| format!("`{text}` names no host"))?;
        match &host {
            Host::Domain(domain) if subdomains && !domain.contains('.') => {
                bail!("`{text}` would permit a whole top-level domain");
            }
            Host::Ipv4(_) | Host::Ipv6(_) if subdomains => {
                bail!("`{text}`: an IP address has no sub-domains");
            }
            Host::Domain(_) | Host::Ipv4(_) | Host::Ipv6(_) => {}
        }
        Ok(Self { scheme, subdomains, host, port })
    }
}

impl fmt::Display for AllowedHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shown, default) = if self.scheme == "http" { ("http://", 80) } else { ("", 443) };
        let below = if self.subdomains { "*." } else { "" };
        write!(f, "{shown}{below}{}", self.host)?;
        if self.port == default { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

impl fmt::Display for AllowedHosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&entries.join(","))
    }
}

impl Serialize for AllowedHosts {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// Host and port in canonical form: a name without the trailing dot, an IPv4-mapped IPv6 address as IPv4.
fn endpoint(url: &Url) -> Option<(Host<String>, u16)> {
    let host = match url.host()? {
        Host::Domain(name) => Host::Domain(name.strip_suffix('.').unwrap_or(name).to_string()),
        Host::Ipv4(ip) => Host::Ipv4(ip),
        Host::Ipv6(ip) => ip.to_ipv4_mapped().map_or(Host::Ipv6(ip), Host::Ipv4),
    };
    let nameless = matches!(&host, Host::Domain(name) if name.is_empty());
    if nameless { None } else { Some((host, url.port_or_known_default()?)) }
}

/// A URL that matches the allow list.
pub(crate) struct AllowedUrl {
    pub(crate) url: Url,
    pub(crate) host: Host<String>,
    pub(crate) port: u16,
    /// Path and query.
    uri: Uri,
}

impl AllowedHosts {
    /// Checks a URL of a client or of a redirect against the list; the only constructor of [`AllowedUrl`].
    pub(crate) fn check(&self, url: Url) -> Result<AllowedUrl, FetchError> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(FetchError::Malformed("the scheme of `url` must be https or http"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(FetchError::Malformed("`url` must not have a user name or a password"));
        }
        let malformed = FetchError::Malformed("`url` is malformed");
        let (host, port) = endpoint(&url).ok_or(malformed)?;
        if !self.0.iter().any(|entry| entry.matches(url.scheme(), &host, port)) {
            return Err(FetchError::NotListed);
        }
        let uri = url[Position::BeforePath..Position::AfterQuery].parse().map_err(|_| malformed)?;
        Ok(AllowedUrl { url, host, port, uri })
    }
}

impl AllowedHost {
    fn matches(&self, scheme: &str, host: &Host<String>, port: u16) -> bool {
        let host_matches = match (&self.host, host) {
            (Host::Domain(domain), Host::Domain(name)) if self.subdomains => {
                let subdomain = name.strip_suffix(domain.as_str());
                subdomain.is_some_and(|label| label.len() > 1 && label.ends_with('.'))
            }
            (expected, host) => expected == host,
        };
        host_matches && self.scheme == scheme && self.port == port
    }
}

impl AllowedUrl {
    /// The request; only its path and query come from the client of the service.
    pub(crate) fn request(&self) -> Result<Request<Empty<Bytes>>, FetchError> {
        let host = match self.url.port() {
            Some(port) => format!("{}:{port}", self.host),
            None => self.host.to_string(),
        };
        let request = Request::get(self.uri.clone())
            .header(HOST, host)
            .header(ACCEPT, "image/*")
            .header(ACCEPT_ENCODING, "identity")
            .header(USER_AGENT, USER_AGENT_VALUE)
            .header(CONNECTION, "close");
        request.body(Empty::new()).map_err(|_| FetchError::Malformed("`url` is malformed"))
    }

    /// The name or address that the certificate of the host must have.
    pub(crate) fn server_name(&self) -> Result<ServerName<'static>, FetchError> {
        match &self.host {
            Host::Domain(name) => {
                ServerName::try_from(name.clone()).map_err(|_| FetchError::Unreachable)
            }
            Host::Ipv4(ip) => Ok(ServerName::from(IpAddr::from(*ip))),
            Host::Ipv6(ip) => Ok(ServerName::from(IpAddr::from(*ip))),
        }
    }
}
