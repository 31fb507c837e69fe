//! Image classification over HTTP with axum, zune-jpeg, fast_image_resize and ONNX Runtime: the service that a Rust
//! engineer would write by hand for the ONNX file of `petnet-train export`.
//!
//! Run with `ORT_DYLIB_PATH=libonnxruntime.so axum-ort MODEL.onnx PORT SESSIONS THREADS`

use std::cell::RefCell;
use std::io::Error;
use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, Multipart, State};
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use crossbeam_channel::{Receiver, Sender};
use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use ort::environment::Environment;
use ort::session::Session;
use ort::session::builder::GraphOptimizationLevel;
use ort::value::TensorRef;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Refusal = (StatusCode, String);

/// Side of the network's input in pixels.
const SIDE: usize = 224;
const NAMES: [&str; 2] = ["cat", "dog"];

thread_local! {
    /// The buffers of a thread that decodes, kept from one request to the next.
    static BUFFERS: RefCell<Buffers> = RefCell::new(Buffers {
        resizer: Resizer::new(),
        square: vec![0; SIDE * SIDE * 3],
        input: vec![0.0; SIDE * SIDE * 3],
    });
}

struct Buffers {
    resizer: Resizer,
    square: Vec<u8>,
    input: Vec<f32>,
}

impl Buffers {
    /// Decodes a JPEG into the network's input. Lanczos is the filter that the model was trained with.
    fn fill(&mut self, photo: &[u8]) -> Result<&[f32], Failure> {
        let options = DecoderOptions::default().jpeg_set_out_colorspace(ColorSpace::RGB);
        let mut decoder = JpegDecoder::new_with_options(ZCursor::new(photo), options);
        let pixels = decoder.decode().map_err(|e| Error::other(format!("{e:?}")))?;
        let (width, height) = decoder.dimensions().ok_or_else(|| Error::other("no size"))?;
        let from = TypedImageRef::<U8x3>::from_buffer(width as u32, height as u32, &pixels)?;
        let side = SIDE as u32;
        let mut to = TypedImage::<U8x3>::from_buffer(side, side, &mut self.square)?;
        let lanczos = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Lanczos3));
        self.resizer.resize_typed(&from, &mut to, &lanczos)?;
        let (red, rest) = self.input.split_at_mut(SIDE * SIDE);
        let (green, blue) = rest.split_at_mut(SIDE * SIDE);
        for (at, pixel) in self.square.as_chunks::<3>().0.iter().enumerate() {
            red[at] = pixel[0].into();
            green[at] = pixel[1].into();
            blue[at] = pixel[2].into();
        }
        Ok(&self.input)
    }
}

fn session(environment: &Environment, model: &str, threads: usize) -> ort::Result<Session> {
    Session::builder(environment)?
        .with_optimization_level(GraphOptimizationLevel::All)?
        .with_intra_threads(threads)?
        .commit_from_file(model)
}

fn infer(session: &mut Session, input: &[f32]) -> Result<[f32; 2], Failure> {
    let images = TensorRef::from_array_view(([1, 3, SIDE, SIDE], input))?;
    let outputs = session.run(ort::inputs!["images" => images])?;
    let (_, values) = outputs["probabilities"].try_extract_tensor::<f32>()?;
    Ok(values.try_into()?)
}

struct Service {
    idle: (Sender<Session>, Receiver<Session>),
    /// One permit a core or session: further requests wait here and hold no thread.
    permits: Semaphore,
}

async fn predict(
    State(service): State<Arc<Service>>,
    mut form: Multipart,
) -> Result<Json<Value>, Refusal> {
    let bad = |e: &dyn std::fmt::Display| (StatusCode::BAD_REQUEST, e.to_string());
    let failed = |e: &dyn std::fmt::Display| (StatusCode::INTERNAL_SERVER_ERROR, e.to_string());
    let mut photo = None;
    while let Some(field) = form.next_field().await.map_err(|e| bad(&e))? {
        if field.name() == Some("file") {
            photo = Some(field.bytes().await.map_err(|e| bad(&e))?);
        }
    }
    let photo = photo.ok_or_else(|| bad(&"no field `file`"))?;
    let permit = service.permits.acquire().await.map_err(|e| failed(&e))?;
    let (give, take) = service.idle.clone();
    let work = move || -> Result<[f32; 2], Failure> {
        BUFFERS.with_borrow_mut(|buffers| {
            let input = buffers.fill(&photo)?;
            let mut session = take.recv()?;
            let probabilities = infer(&mut session, input);
            give.send(session)?;
            probabilities
        })
    };
    let done = tokio::task::spawn_blocking(work).await.map_err(|e| failed(&e))?;
    drop(permit);
    let [cat, dog] = done.map_err(|e| bad(&e))?;
    let best = usize::from(dog > cat);
    Ok(Json(json!({
        "predicted_class": NAMES[best],
        "predicted_label": best,
        "confidence": cat.max(dog),
        "probabilities": {"cat": cat, "dog": dog},
    })))
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, port, sessions, threads] = arguments.as_slice() else {
        return Err("usage: axum-ort MODEL.onnx PORT SESSIONS THREADS".into());
    };
    let sessions: usize = sessions.parse()?;
    let environment = ort::init().build()?;
    let idle = crossbeam_channel::unbounded();
    for _ in 0..sessions {
        idle.0.send(session(&environment, model, threads.parse()?)?)?;
    }
    let permits = sessions.max(std::thread::available_parallelism()?.get());
    let service = Arc::new(Service { idle, permits: Semaphore::new(permits) });
    let app = Router::new()
        .route("/predict", post(predict))
        .layer(DefaultBodyLimit::max(16 << 20))
        .with_state(service);
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port.parse()?)).await?;
    Ok(axum::serve(listener, app).await?)
}
