//! Client of an [MLflow](https://mlflow.org) tracking server, for a trainer and a service: runs, and the models of the
//! registry.
//!
//! Paths and payloads are those of MLflow's REST API, tested with MLflow 3.17.

mod registry;
mod runs;

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use ureq::http::{Response, StatusCode};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

pub use registry::{DIGEST_TAG, ModelUri, ModelVersion, VersionRef};
pub use runs::{MetricValue, NewModel, NewRun, RemoteRecord};

use crate::error::Error;

/// The result of a request to a server.
pub type Result<T, E = RequestError> = std::result::Result<T, E>;

const API: &str = "api/2.0/mlflow";
const ARTIFACTS_API: &str = "api/2.0/mlflow-artifacts/artifacts";
/// Longest wait for a connection, and for the next bytes on one.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Largest JSON response in bytes.
const MAX_RESPONSE_BYTES: u64 = 16 << 20;

/// Error of a request to a server.
#[non_exhaustive]
#[derive(Debug, Clone, thiserror::Error)]
pub enum RequestError {
    /// No response; a retry may succeed.
    #[error("{server} cannot be reached: {reason}")]
    Unreachable {
        /// Address of the server.
        server: String,
        /// The error of the connection.
        reason: String,
    },
    /// A response with an error status.
    #[error("{server} refused ({status} {code}): {message}")]
    Refused {
        /// Address of the server.
        server: String,
        /// HTTP status.
        status: u16,
        /// MLflow's error code, e.g. `RESOURCE_DOES_NOT_EXIST`; empty where there is none.
        code: String,
        /// MLflow's message, or the beginning of the response.
        message: String,
    },
    /// An invalid response, or a file that cannot be read.
    #[error("{0}")]
    Invalid(String),
}

impl RequestError {
    /// True where the same request may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { status, .. } => matches!(status, 408 | 425 | 429 | 500..),
            Self::Invalid(_) => false,
        }
    }

    /// True where the response has this error code.
    pub fn is(&self, expected: &str) -> bool {
        matches!(self, Self::Refused { code, .. } if code == expected)
    }
}

/// A tracking server with credentials.
///
/// ```no_run
/// use petnet::mlflow::{ModelUri, Server};
///
/// let server = Server::from_variables("http://localhost:5001", |name| std::env::var(name).ok())?;
/// let uri: ModelUri = "models:/CatsDogsClassifier@champion".parse()?;
/// let version = server.version(&uri)?;
/// let file = server.weights(&version)?;
/// println!("version {} has {} bytes", version.version, file.len());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Server {
    agent: Agent,
    /// Without credentials and without a slash at the end.
    uri: String,
    authorization: Option<String>,
}

impl Server {
    /// A server by address, with credentials as for MLflow's own clients: in the address (`https://user:password@host`), or
    /// in the variables `MLFLOW_TRACKING_USERNAME` and `MLFLOW_TRACKING_PASSWORD`, or `MLFLOW_TRACKING_TOKEN`.
    /// `MLFLOW_TRACKING_SERVER_CERT_PATH` and `MLFLOW_TRACKING_INSECURE_TLS` set the verification of TLS certificates. The
    /// function `variable` reads a variable.
    ///
    /// # Errors
    /// [`Error::Config`] for an address that is not http or https or a certificate that cannot be
    /// read.
    pub fn from_variables(
        uri: &str,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Error> {
        // Values from files and secrets often end with a line break.
        let lookup = |name: &str| {
            let value = variable(name).map(|value| value.trim().to_string());
            value.filter(|value| !value.is_empty())
        };
        let uri = uri.trim();
        let (scheme, rest) = uri
            .split_once("://")
            .filter(|(scheme, rest)| matches!(*scheme, "http" | "https") && !rest.is_empty())
            .ok_or_else(|| {
                Error::Config(format!("tracking server {uri}: must begin with http:// or https://"))
            })?;
        let authority_end = rest.find('/').unwrap_or(rest.len());
        let (credentials, host) = match rest[..authority_end].rfind('@') {
            Some(at) => (Some(percent_decode_str(&rest[..at]).collect()), &rest[at + 1..]),
            None => (None, rest),
        };
        let user = lookup("MLFLOW_TRACKING_USERNAME").map(|name| {
            let password = lookup("MLFLOW_TRACKING_PASSWORD").unwrap_or_default();
            format!("{name}:{password}").into_bytes()
        });
        let token = lookup("MLFLOW_TRACKING_TOKEN").map(|token| format!("Bearer {token}"));
        let authorization =
            credentials.or(user).map(|pair| format!("Basic {}", STANDARD.encode(pair))).or(token);
        let tls = TlsConfig::builder()
            .root_certs(match lookup("MLFLOW_TRACKING_SERVER_CERT_PATH") {
                Some(path) => certificates(Path::new(&path))?,
                None => RootCerts::WebPki,
            })
            .disable_verification(
                lookup("MLFLOW_TRACKING_INSECURE_TLS").is_some_and(|v| v == "true" || v == "1"),
            )
            .build();
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_per_read(Some(STALL_TIMEOUT))
            .timeout_per_write(Some(STALL_TIMEOUT))
            .user_agent(concat!("petnet/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls)
            .build()
            .into();
        let uri = format!("{scheme}://{}", host.trim_end_matches('/'));
        Ok(Self { agent, uri, authorization })
    }

    /// Address of the server, without credentials.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// Sends a GET request to a path below `/api/2.0/mlflow/`, e.g. `runs/get`.
    fn get<T: DeserializeOwned>(&self, path: &str, query: &[(&str, &str)]) -> Result<T> {
        self.read(&format!("{API}/{path}"), query)
    }

    /// Sends a POST request with JSON to a path below `/api/2.0/mlflow/`.
    fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let request = self.agent.post(self.url(&format!("{API}/{path}")));
        self.response(self.signed(request).send_json(body))
    }

    /// Sends a PATCH request with JSON to a path below `/api/2.0/mlflow/`.
    fn patch(&self, path: &str, body: &Value) -> Result<Value> {
        let request = self.agent.patch(self.url(&format!("{API}/{path}")));
        self.response(self.signed(request).send_json(body))
    }

    /// The path of an artifact on the server, the part of its address after `mlflow-artifacts:/`.
    /// Errors: [`RequestError::Invalid`] for another address, whose content the server does not proxy.
    fn artifact_path<'a>(&self, uri: &'a str) -> Result<&'a str> {
        let path = uri.strip_prefix("mlflow-artifacts:/").ok_or_else(|| {
            RequestError::Invalid(format!(
                "{} keeps artifacts at {uri} and does not proxy them: start it with --artifacts-destination",
                self.uri
            ))
        })?;
        Ok(path.trim_matches('/'))
    }

    /// Uploads a file through the server to its artifact store.
    fn upload(&self, path: &str, file: &Path) -> Result<()> {
        let unreadable =
            |e: std::io::Error| RequestError::Invalid(format!("{}: {e}", file.display()));
        let content = File::open(file).map_err(unreadable)?;
        let request = self.agent.put(self.url(&format!("{ARTIFACTS_API}/{}", encoded(path))));
        let request = self.signed(request).header("content-type", "application/octet-stream");
        self.response(request.send(content)).map(|_| ())
    }

    /// Names of the files in a folder of the artifact store.
    fn list(&self, folder: &str) -> Result<Vec<String>> {
        let listing: Value = self.read(ARTIFACTS_API, &[("path", folder)])?;
        let files = listing["files"].as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(files
            .iter()
            .filter(|file| file["is_dir"] != json!(true))
            .filter_map(|file| file["path"].as_str().map(str::to_string))
            .collect())
    }

    /// An artifact's content, `limit` bytes at most.
    fn download(&self, path: &str, limit: u64) -> Result<Vec<u8>> {
        let request = self.agent.get(self.url(&format!("{ARTIFACTS_API}/{}", encoded(path))));
        let mut response = self.successful(self.signed(request).call())?;
        let body = response.body_mut().with_config().limit(limit);
        body.read_to_vec().map_err(|e| self.failed(&e))
    }

    fn read<T: DeserializeOwned>(&self, path: &str, query: &[(&str, &str)]) -> Result<T> {
        let request = self.agent.get(self.url(path)).query_pairs(query.iter().copied());
        let response = self.response(self.signed(request).call())?;
        serde_json::from_value(response).map_err(|e| self.invalid(&e))
    }

    fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.uri)
    }

    fn signed<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.authorization {
            Some(value) => request.header("authorization", value),
            None => request,
        }
    }

    fn failed(&self, error: &ureq::Error) -> RequestError {
        match error {
            // The same request would be answered by as much again.
            ureq::Error::BodyExceedsLimit(_) => self.invalid(error),
            _ => {
                let reason = error.to_string();
                RequestError::Unreachable { server: self.uri.clone(), reason }
            }
        }
    }

    fn invalid(&self, reason: &dyn std::fmt::Display) -> RequestError {
        RequestError::Invalid(format!(
            "{} sent a response that is not MLflow's: {reason}",
            self.uri
        ))
    }

    /// The response, if its status is one of success.
    fn successful(&self, sent: Result<Response<Body>, ureq::Error>) -> Result<Response<Body>> {
        let mut response = sent.map_err(|e| self.failed(&e))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = response.body_mut().with_config().limit(MAX_RESPONSE_BYTES).read_to_string();
        let text = text.unwrap_or_default();
        let body: Value = serde_json::from_str(&text).unwrap_or_default();
        let message = match body["message"].as_str() {
            Some(message) => message.to_string(),
            None if status == StatusCode::UNAUTHORIZED => {
                "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
                    .to_string()
            }
            None => text.trim().chars().take(200).collect(),
        };
        Err(RequestError::Refused {
            server: self.uri.clone(),
            status: status.as_u16(),
            code: body["error_code"].as_str().unwrap_or_default().to_string(),
            message,
        })
    }

    fn response(&self, sent: Result<Response<Body>, ureq::Error>) -> Result<Value> {
        let mut response = self.successful(sent)?;
        let text = response.body_mut().with_config().limit(MAX_RESPONSE_BYTES).read_to_string();
        let text = text.map_err(|e| self.failed(&e))?;
        if text.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).map_err(|e| self.invalid(&e))
    }
}

fn certificates(path: &Path) -> Result<RootCerts, Error> {
    let pem = std::fs::read(path).map_err(Error::io(path))?;
    let found: Vec<_> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if found.is_empty() {
        return Err(Error::Config(format!(
            "{}: it has no certificate in PEM format",
            path.display()
        )));
    }
    Ok(RootCerts::new_with_certs(&found))
}

/// A path in percent-encoding, with its slashes.
fn encoded(path: &str) -> impl std::fmt::Display {
    const ENCODED_CHARACTERS: &AsciiSet =
        &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');
    utf8_percent_encode(path, ENCODED_CHARACTERS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_come_from_the_address_or_the_variables_and_are_never_shown() {
        let none = |_: &str| None;
        let server = Server::from_variables("https://ann:pw@host:5/x.mlflow/", none).unwrap();
        assert_eq!(server.uri(), "https://host:5/x.mlflow");
        assert_eq!(server.authorization.as_deref(), Some("Basic YW5uOnB3"));
        // Reserved characters are percent-encoded, and a file ends with a line break.
        let server = Server::from_variables("https://a%40b:p%2Fw@host\n", none).unwrap();
        assert_eq!(server.uri(), "https://host");
        assert_eq!(server.authorization, Some(format!("Basic {}", STANDARD.encode("a@b:p/w"))));
        let given = |name: &str| match name {
            "MLFLOW_TRACKING_USERNAME" => Some("ann".to_string()),
            "MLFLOW_TRACKING_PASSWORD" => Some("secret".to_string()),
            _ => None,
        };
        let server = Server::from_variables("http://host", given).unwrap();
        assert_eq!(server.authorization.as_deref(), Some("Basic YW5uOnNlY3JldA=="));
        let token = |name: &str| (name == "MLFLOW_TRACKING_TOKEN").then(|| "t".to_string());
        let server = Server::from_variables("http://host", token).unwrap();
        assert_eq!(server.authorization.as_deref(), Some("Bearer t"));
        assert!(Server::from_variables("sqlite:///mlflow.db", none).is_err());
    }

    #[test]
    fn a_path_is_encoded_and_its_slashes_stay() {
        assert_eq!(encoded("1/a b+c.png").to_string(), "1/a%20b%2Bc.png");
    }
}
