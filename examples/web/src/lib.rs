//! petnet compiled to WebAssembly, for a page that classifies images without a server.
//! Run with `examples/web/build.sh && python3 -m http.server --directory target/web`.

use petnet::{Classifier, Error};
use wasm_bindgen::prelude::*;

/// The bundled network, ready to answer.
#[wasm_bindgen]
pub struct Petnet(Classifier);

#[wasm_bindgen]
impl Petnet {
    /// Reads the model that lies in the file of the program itself.
    ///
    /// # Errors
    /// None in a sound build.
    #[wasm_bindgen(constructor)]
    pub fn new() -> Result<Petnet, JsError> {
        Classifier::pretrained().map(Self).map_err(told)
    }

    /// Class names in the order of the probabilities.
    pub fn labels(&self) -> Vec<String> {
        self.0.labels().to_vec()
    }

    /// Classifies the bytes of a JPEG, PNG, WebP, GIF or BMP file.
    ///
    /// # Errors
    /// What is wrong with the image, in words.
    pub fn classify(&self, image: &[u8]) -> Result<Answer, JsError> {
        let pixels = self.0.preprocess(image).map_err(told)?;
        let explanation = self.0.explain_pixels(&pixels).map_err(told)?;
        let overlay = explanation.overlay(&pixels);
        let guess = explanation.prediction();
        let decision = guess.decision();
        Ok(Answer {
            label: guess.label().into(),
            decision: decision.name().into(),
            message: decision.reason(self.0.labels()),
            probabilities: guess.probabilities().to_vec(),
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

/// What the network says of one image.
#[wasm_bindgen(getter_with_clone)]
pub struct Answer {
    /// Name of the likeliest class.
    pub label: String,
    /// `answered`, `low_confidence` or `out_of_distribution`.
    pub decision: String,
    /// The reason in a sentence where there is no answer.
    pub message: Option<String>,
    /// One for each of `labels`; they sum to 1.
    pub probabilities: Vec<f32>,
    /// Of the image in `heat`, in pixels.
    pub side: u32,
    /// The image under a map of where the network looked, four bytes a pixel.
    pub heat: Vec<u8>,
}

fn told(error: Error) -> JsError {
    JsError::new(&error.to_string())
}
