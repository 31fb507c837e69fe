//! Export a model as an ONNX file, and with weights of 16 and 8 bits, and print the change of a prediction.
//!
//! Run with `cargo run --release --features onnx --example export -- shipped rex.jpg`

use std::path::PathBuf;

use petnet::{Checkpoint, Classifier, Precision};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().unwrap_or_else(|| "shipped".into()));
    let image = std::fs::read(arguments.next().ok_or("usage: export FOLDER IMAGE")?)?;
    std::fs::create_dir_all(&folder)?;
    let model = Checkpoint::pretrained()?;
    model.save_onnx(folder.join("model.onnx"))?;
    let before = Classifier::new(model.clone(), petnet::Device::Cpu)?.classify_bytes(&image)?;
    for (name, precision) in [("f16", Precision::F16), ("int8", Precision::Int8)] {
        let file = folder.join(format!("{name}.safetensors"));
        model.save(&file, precision)?;
        let after = Classifier::load(&file)?.classify_bytes(&image)?;
        let change = (before.confidence() - after.confidence()).abs();
        let bytes = std::fs::metadata(&file)?.len();
        println!("{name}: {bytes} bytes, {after}, confidence changed by {change:.5}");
    }
    Ok(())
}
