//! Draw the Grad-CAM heat map of a prediction over the image.
//!
//! Run with `cargo run --release --example explain -- rex.jpg heat.png`

use petnet::Classifier;
use petnet::preprocess::{Limits, decode};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: explain IMAGE [PNG]")?;
    let output = arguments.next().unwrap_or_else(|| "heat.png".into());
    let bytes = std::fs::read(&path)?;
    let explanation = Classifier::pretrained()?.explain_bytes(&bytes)?;
    let overlay = explanation.overlay(&decode(&bytes, &Limits::default())?);
    let (width, height) = (overlay.width(), overlay.height());
    image::save_buffer(&output, overlay.data(), width, height, image::ColorType::Rgb8)?;
    println!("{path}: {}, see {output}", explanation.prediction());
    Ok(())
}
