//! `/embed`: the embedding of an image, for similarity search and duplicates.

use std::sync::Arc;

use serde::Serialize;

use super::images::Images;
use super::{HandlerResult, HttpRequest, typed_response};
use crate::app::App;
use crate::problem::Problem;
use crate::telemetry::{RequestDetails, milliseconds};

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
pub(super) async fn embed(app: &Arc<App>, request: &mut HttpRequest) -> HandlerResult {
    let (Images { target, upload, received }, output) = Images::classify(app, request).await?;
    let (model, bytes) = (&target.model, upload.body_len);
    let embedding = &output.value.embedding;
    let body = Body {
        embedding,
        length: embedding.len(),
        model: Named { name: &model.name, version: &model.version, sha256: &model.sha256 },
        processing_time_ms: milliseconds(received.elapsed()),
    };
    let body = serde_json::to_vec(&body).map_err(|_| Problem::internal())?;
    let mut response = typed_response("application/json", body);
    let (received, timings) = (Some(received), output.timings.into_iter().collect());
    let details = RequestDetails { received, timings, images: 1, bytes, ..Default::default() };
    response.extensions_mut().insert(details);
    Ok(response)
}
