//! petnet compiled to WebAssembly, for a page that classifies images without a server.
//! Run with `examples/web/build.sh && python3 -m http.server --directory target/web`.

use petnet::{Classifier, Error};
use wasm_bindgen::prelude::*;

/// A classifier with the bundled model.
#[wasm_bindgen]
pub struct Petnet(Classifier);

#[wasm_bindgen]
impl Petnet {
    /// Loads the model that is embedded in the program.
    ///
    /// # Errors
    /// None, unless the build is damaged.
    #[wasm_bindgen(constructor)]
    pub fn new() -> Result<Petnet, JsError> {
        Classifier::pretrained().map(Self).map_err(to_js)
    }

    /// Class names in the order of the probabilities.
    pub fn labels(&self) -> Vec<String> {
        self.0.labels().to_vec()
    }

    /// Classifies the bytes of a JPEG, PNG, WebP, GIF or BMP file.
    ///
    /// # Errors
    /// The reason why the image cannot be classified.
    pub fn classify(&self, image: &[u8]) -> Result<Answer, JsError> {
        let pixels = self.0.preprocess(image).map_err(to_js)?;
        let explanation = self.0.explain_pixels(&pixels).map_err(to_js)?;
        let overlay = explanation.overlay(&pixels);
        let prediction = explanation.prediction();
        let decision = prediction.decision();
        Ok(Answer {
            label: prediction.label().into(),
            decision: decision.name().into(),
            message: decision.reason(self.0.labels()),
            probabilities: prediction.probabilities().to_vec(),
            side: overlay.width(),
            heat: overlay
                .data()
                .as_chunks::<3>()
                .0
                .iter()
                .flat_map(|&[r, g, b]| [r, g, b, 255])
                .collect(),
        })
    }
}

/// The prediction for one image.
#[wasm_bindgen(getter_with_clone)]
pub struct Answer {
    /// Name of the likeliest class.
    pub label: String,
    /// `answered`, `low_confidence` or `out_of_distribution`.
    pub decision: String,
    /// The reason as a sentence, unless the decision is `answered`.
    pub message: Option<String>,
    /// One probability for each of `labels`; they sum to 1.
    pub probabilities: Vec<f32>,
    /// Side of the square in `heat`, in pixels.
    pub side: u32,
    /// The image with the heat map of the predicted class over it, in RGBA, four bytes per pixel.
    pub heat: Vec<u8>,
}

fn to_js(error: Error) -> JsError {
    JsError::new(&error.to_string())
}
