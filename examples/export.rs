//! Ship a model at half its size: two bytes a weight, and how far the answers move.
//!
//! Run with `cargo run --release --example export -- small.safetensors rex.jpg`

use petnet::{Checkpoint, Classifier, Precision};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let file = arguments.next().unwrap_or_else(|| "small.safetensors".into());
    let photo = std::fs::read(arguments.next().ok_or("usage: export FILE PHOTO")?)?;
    let model = Checkpoint::pretrained()?;
    model.save(&file, Precision::F16)?;
    let before = Classifier::new(model, petnet::Device::Cpu)?.classify_bytes(&photo)?;
    let after = Classifier::load(&file)?.classify_bytes(&photo)?;
    let moved = (before.confidence() - after.confidence()).abs();
    println!("{file}: {} bytes, {after}, moved by {moved:.5}", std::fs::metadata(&file)?.len());
    Ok(())
}
