//! `/embed`: the embedding of an image, for similarity search and duplicates.

use std::sync::Arc;

use hyper::Request;
use hyper::body::Incoming;
use serde::Serialize;

use super::images::{Images, Single};
use super::{Reply, text};
use crate::app::App;
use crate::problem::Problem;
use crate::telemetry::{Note, milliseconds};

/// The response. `serde_json` writes the shortest digits that parse to the same f32.
#[derive(Serialize)]
struct Body<'a> {
    embedding: &'a [f32],
    length: usize,
    model: Named<'a>,
    processing_time_ms: f64,
}

#[derive(Serialize)]
struct Named<'a> {
    name: &'a str,
    version: &'a str,
    /// Embeddings of different models are not comparable.
    sha256: &'a str,
}

/// Embeds an image. It is neither counted as a prediction nor stored for feedback.
pub(super) async fn embed(
    app: &Arc<App>,
    request: &mut Request<Incoming>,
) -> Result<Reply, Problem> {
    let Single { images: Images { target, upload, accepted }, answer } =
        Single::classify(app, request).await?;
    let (model, bytes) = (&target.model, upload.size);
    let embedding = &answer.value.embedding;
    let body = Body {
        embedding,
        length: embedding.len(),
        model: Named { name: &model.name, version: &model.version, sha256: &model.sha256 },
        processing_time_ms: milliseconds(accepted.elapsed()),
    };
    let body = serde_json::to_vec(&body).map_err(|_| Problem::internal())?;
    let mut reply = text("application/json", body);
    let (accepted, timings) = (Some(accepted), answer.timings.into_iter().collect());
    reply.extensions_mut().insert(Note { accepted, timings, images: 1, bytes, ..Note::default() });
    Ok(reply)
}
