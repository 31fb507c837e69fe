//! Classify images with the network that ships inside the crate.
//!
//! Run with `cargo run --release --example classify -- rex.jpg tom.jpg`

use petnet::Classifier;

fn main() -> petnet::Result<()> {
    let classifier = Classifier::pretrained()?;
    for path in std::env::args().skip(1) {
        let guess = classifier.classify_path(&path)?;
        match guess.decision().reason(classifier.labels()) {
            None => println!("{path}: {guess}"),
            Some(reason) => println!("{path}: unsure: {reason}"),
        }
    }
    Ok(())
}
