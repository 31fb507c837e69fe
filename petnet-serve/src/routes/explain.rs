//! `/explain`: the prediction, and a Grad-CAM heat map of the regions that it depends on.

use std::sync::Arc;

use base64::Engine as _;
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{Request, StatusCode};
use petnet::Explanation;
use petnet::preprocess::{Limits, Pixels, Preprocess, Resize, decode_at_least};
use serde_json::{Value, json};

use super::images::Images;
use super::negotiate::{Form, preferred};
use super::predict::note;
use super::{Reply, json as json_reply, new_id, text};
use crate::answer::{describe, remember};
use crate::app::App;
use crate::outputs::Answer;
use crate::problem::Problem;
use crate::telemetry::{Note, milliseconds};

/// Longer side of the overlay image, in pixels.
const SIDE: u32 = 512;

pub(super) async fn explain(
    app: &Arc<App>,
    request: &mut Request<Incoming>,
) -> Result<Reply, Problem> {
    let wants_json = preferred(request.headers(), [Form::Png, Form::Json]) == Form::Json;
    let Images { target, upload, accepted: began } = Images::read(app, request).await?;
    let bytes = upload.size;
    let image = upload.only()?;
    let answer = app.batcher.explain(&target, image.clone()).await?;
    let Answer { value: explanation, timings, facts } = answer;
    let limits = app.settings.limits();
    let large = Preprocess { size: SIDE, resize: Resize::Stretch };
    // In addition to decoding: two images of the overlay's size, and the PNG file.
    let memory = large.memory(&image, &limits)? + 3 * u64::from(SIDE * SIDE * 3);
    let drawn = move || draw(&explanation, &image, &limits).map(|png| (explanation, png));
    let (explanation, png) = app.batcher.decoders().run(memory, drawn).await?;
    let prediction = explanation.prediction();
    let id = new_id();
    remember(app, &target, id, (prediction, &facts));
    let mut fields = describe(prediction, &target.model, id);
    let mut reply = if wants_json {
        let encoded = base64::engine::general_purpose::STANDARD.encode(&png);
        let (width, height) = explanation.size();
        let heat = json!({ "width": width, "height": height, "values": explanation.heat() });
        fields.insert("heatmap".into(), heat);
        fields.insert("overlay".into(), format!("data:image/png;base64,{encoded}").into());
        fields.insert("processing_time_ms".into(), milliseconds(began.elapsed()).into());
        json_reply(StatusCode::OK, &Value::Object(fields))
    } else {
        let mut reply = text("image/png", png);
        if let Ok(label) = HeaderValue::from_str(prediction.label()) {
            reply.headers_mut().insert(HeaderName::from_static("x-predicted-class"), label);
        }
        let confidence = HeaderValue::from_str(&prediction.confidence().to_string());
        if let Ok(confidence) = confidence {
            reply.headers_mut().insert(HeaderName::from_static("x-confidence"), confidence);
        }
        let decision = HeaderValue::from_static(prediction.decision().name());
        reply.headers_mut().insert(HeaderName::from_static("x-decision"), decision);
        reply
    };
    let (accepted, timings) = (Some(began), timings.into_iter().collect());
    reply.extensions_mut().insert(Note { accepted, timings, bytes, ..note(prediction, id) });
    Ok(reply)
}

/// The image with the heat map over it, as a PNG file.
fn draw(explanation: &Explanation, bytes: &Bytes, limits: &Limits) -> Result<Bytes, Problem> {
    let pixels = shrink(decode_at_least(bytes, limits, SIDE)?).ok_or_else(Problem::internal)?;
    let overlay = explanation.overlay(&pixels);
    let (width, height) = (overlay.width(), overlay.height());
    let overlay = image::RgbImage::from_raw(width, height, overlay.into_data()).unwrap_or_default();
    let mut png = std::io::Cursor::new(Vec::new());
    overlay.write_to(&mut png, image::ImageFormat::Png).map_err(|_| Problem::internal())?;
    Ok(png.into_inner().into())
}

fn shrink(pixels: Pixels) -> Option<Pixels> {
    let (width, height) = (pixels.width(), pixels.height());
    if width.max(height) <= SIDE {
        return Some(pixels);
    }
    let large = image::RgbImage::from_raw(width, height, pixels.into_data())?;
    let small = image::DynamicImage::from(large).thumbnail(SIDE, SIDE).into_rgb8();
    Pixels::new(small.width(), small.height(), small.into_raw())
}
