//! `/explain`: the prediction, and a Grad-CAM heat map of the regions that it depends on.

use std::sync::Arc;

use base64::Engine as _;
use bytes::Bytes;
use hyper::header::HeaderValue;
use petnet::Explanation;
use petnet::preprocess::{Limits, Pixels, Preprocess, Resize, decode_at_least};
use serde_json::{Value, json};

use super::images::Images;
use super::negotiate::{JSON, PNG, prefers};
use super::predict::prediction_details;
use super::{HandlerResult, HttpRequest, json_response, new_id, typed_response};
use crate::app::App;
use crate::outputs::ModelOutput;
use crate::prediction::{prediction_fields, record_prediction};
use crate::problem::Problem;
use crate::telemetry::{RequestDetails, milliseconds};

/// Longer side of the overlay image, in pixels.
const OVERLAY_SIDE: u32 = 512;

pub(super) async fn explain(app: &Arc<App>, request: &mut HttpRequest) -> HandlerResult {
    let wants_json = prefers(request.headers(), &JSON, &PNG);
    let Images { target, upload, received } = Images::read(app, request).await?;
    let bytes = upload.body_len;
    let image = upload.only_image()?;
    let output = app.batcher.explain(&target, image.clone()).await?;
    let ModelOutput { value: explanation, timings, metadata } = output;
    let limits = app.settings.limits();
    let overlay = Preprocess { size: OVERLAY_SIDE, resize: Resize::Squeeze };
    // In addition to decoding: two images of the overlay's size, and the PNG file.
    let memory = overlay.memory(&image, &limits)? + 3 * u64::from(OVERLAY_SIDE * OVERLAY_SIDE * 3);
    let work = move || draw(&explanation, &image, &limits).map(|png| (explanation, png));
    let (explanation, png) = app.batcher.decoders.run(memory, work).await?;
    let prediction = explanation.prediction();
    let id = new_id();
    record_prediction(app, &target, id, (prediction, &metadata));
    let mut fields = prediction_fields(prediction, &target.model, id);
    let mut response = if wants_json {
        let encoded = base64::engine::general_purpose::STANDARD.encode(&png);
        let (width, height) = explanation.size();
        let heat = json!({ "width": width, "height": height, "values": explanation.heat() });
        fields.insert("heatmap".into(), heat);
        fields.insert("overlay".into(), format!("data:image/png;base64,{encoded}").into());
        fields.insert("processing_time_ms".into(), milliseconds(received.elapsed()).into());
        json_response(&Value::Object(fields))
    } else {
        let mut response = typed_response("image/png", png);
        for (name, text) in [
            ("x-predicted-class", prediction.label()),
            ("x-confidence", prediction.confidence().to_string().as_str()),
            ("x-decision", prediction.decision().name()),
        ] {
            if let Ok(value) = HeaderValue::from_str(text) {
                response.headers_mut().insert(name, value);
            }
        }
        response
    };
    let (received, timings) = (Some(received), timings.into_iter().collect());
    let details = prediction_details(prediction, id);
    response.extensions_mut().insert(RequestDetails { received, timings, bytes, ..details });
    Ok(response)
}

/// The image with the heat map over it, as a PNG file.
fn draw(explanation: &Explanation, bytes: &Bytes, limits: &Limits) -> Result<Bytes, Problem> {
    let pixels =
        shrink(decode_at_least(bytes, limits, OVERLAY_SIDE)?).ok_or_else(Problem::internal)?;
    let overlay = explanation.overlay(&pixels);
    let (width, height) = (overlay.width(), overlay.height());
    let overlay = image::RgbImage::from_raw(width, height, overlay.into_data()).unwrap_or_default();
    let mut png = std::io::Cursor::new(Vec::new());
    overlay.write_to(&mut png, image::ImageFormat::Png).map_err(|_| Problem::internal())?;
    Ok(png.into_inner().into())
}

fn shrink(pixels: Pixels) -> Option<Pixels> {
    let (width, height) = (pixels.width(), pixels.height());
    if width.max(height) <= OVERLAY_SIDE {
        return Some(pixels);
    }
    let large = image::RgbImage::from_raw(width, height, pixels.into_data())?;
    let small = image::DynamicImage::from(large).thumbnail(OVERLAY_SIDE, OVERLAY_SIDE).into_rgb8();
    Pixels::new(small.width(), small.height(), small.into_raw())
}
