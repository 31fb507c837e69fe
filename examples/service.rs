//! Use the classifier in your own web service, here on hyper. `petnet-serve` is a complete service with batching, limits
//! and metrics.
//!
//! Run with `cargo run --release --example service -- 127.0.0.1:3000`, then
//! `curl --data-binary @rex.jpg 127.0.0.1:3000`

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use petnet::Classifier;
use tokio::net::TcpListener;

/// Largest image in bytes.
const MAX_BYTES: usize = 16 << 20;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".into());
    let listener = TcpListener::bind(address).await?;
    println!("listening on {}", listener.local_addr()?);
    // Shared by all connections: it is `Send`, `Sync` and immutable.
    let classifier = Arc::new(Classifier::pretrained()?);
    loop {
        let (stream, _) = listener.accept().await?;
        let classifier = Arc::clone(&classifier);
        tokio::spawn(async move {
            let service = service_fn(|request| classify(Arc::clone(&classifier), request));
            // Errors of a connection, such as a client that disconnects, are ignored.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn classify(
    classifier: Arc<Classifier>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let Ok(body) = Limited::new(request.into_body(), MAX_BYTES).collect().await else {
        return Ok(reply(StatusCode::PAYLOAD_TOO_LARGE, "the image is too large".into()));
    };
    let image = body.to_bytes();
    // Inference takes milliseconds and must not block the threads of the runtime.
    let result = tokio::task::spawn_blocking(move || classifier.classify_bytes(&image)).await;
    Ok(match result {
        Ok(Ok(prediction)) => reply(StatusCode::OK, prediction.to_string()),
        Ok(Err(error)) => reply(StatusCode::BAD_REQUEST, error.to_string()),
        Err(_) => reply(StatusCode::INTERNAL_SERVER_ERROR, "inference failed".into()),
    })
}

fn reply(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut reply = Response::new(Full::from(format!("{text}\n")));
    *reply.status_mut() = status;
    reply
}
