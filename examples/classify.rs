//! Classify images with the model that is bundled with the crate.
//!
//! Run with `cargo run --release --example classify -- rex.jpg tom.jpg`

use petnet::Classifier;

fn main() -> petnet::Result<()> {
    let classifier = Classifier::pretrained()?;
    for path in std::env::args().skip(1) {
        let prediction = classifier.classify_path(&path)?;
        match prediction.decision().reason(classifier.labels()) {
            None => println!("{path}: {prediction}"),
            Some(reason) => println!("{path}: unsure: {reason}"),
        }
    }
    Ok(())
}
