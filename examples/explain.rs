//! Draw where the network looked, as a heat map over the image.
//!
//! Run with `cargo run --release --example explain -- rex.jpg heat.png`

use petnet::Classifier;
use petnet::preprocess::{Limits, decode};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let photo = arguments.next().ok_or("usage: explain PHOTO [PNG]")?;
    let picture = arguments.next().unwrap_or_else(|| "heat.png".into());
    let bytes = std::fs::read(&photo)?;
    let explanation = Classifier::pretrained()?.explain_bytes(&bytes)?;
    let overlay = explanation.overlay(&decode(&bytes, &Limits::default())?);
    let (width, height) = (overlay.width(), overlay.height());
    image::save_buffer(&picture, overlay.data(), width, height, image::ColorType::Rgb8)?;
    println!("{photo}: {}, see {picture}", explanation.prediction());
    Ok(())
}
