//! HTTPS, with a certificate for this test only.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;

use common::{Reply, Server};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

const CERTIFICATE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tls/certificate.pem");
const KEY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tls/key.pem");

#[tokio::test]
async fn it_speaks_https_and_offers_http2() {
    let server = Server::start(&["--tls-cert", CERTIFICATE, "--tls-key", KEY]);
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(CERTIFICATE).unwrap()).unwrap();
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    for (offered, taken) in [("http/1.1", "http/1.1"), ("h2", "h2")] {
        config.alpn_protocols = vec![offered.as_bytes().to_vec()];
        let connector = TlsConnector::from(Arc::new(config.clone()));
        let name = ServerName::try_from("localhost").unwrap();
        let socket = TcpStream::connect(server.address).await.unwrap();
        let mut stream = connector.connect(name, socket).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(taken.as_bytes()));
        if taken == "http/1.1" {
            let request = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
            stream.write_all(request).await.unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.unwrap();
            assert_eq!(Reply::parse(&answer).json()["status"], "healthy");
        }
    }
}

#[test]
fn plain_http_gets_no_response_on_a_tls_port() {
    let server = Server::start(&["--tls-cert", CERTIFICATE, "--tls-key", KEY]);
    assert_eq!(server.get("/health").status, 0);
    assert_eq!(server.get("/health").status, 0);
}
