//! Train a model for your own classes from a few images of each, in seconds: the bundled backbone is frozen, and the last
//! layer is fitted to its features. With some hundred images per class, training the last blocks too, from this model, is
//! better: `init: Some(InitialWeights::File("mine.safetensors".into())), freeze: Some(Freeze::Blocks(8)), epochs: 12`.
//!
//! Run with `cargo run --release --features train --example finetune -- photos`

use petnet::{Calibration, Dataset, Precision, Trainer};

fn main() -> petnet::Result<()> {
    let folder = std::env::args().nth(1).unwrap_or_else(|| "photos".into());
    let (train, valid) = Dataset::open(folder)?.split(0.75)?;
    let fitted = Trainer::default().fit(&train, &valid)?;
    println!("validation accuracy {:.0} %", fitted.history[0].val_accuracy * 100.0);
    // Calibrated probabilities, and detection of out-of-distribution images.
    let model = fitted.best.calibrated(&train, &valid, &Calibration::default())?;
    model.save("mine.safetensors", Precision::F32)?;
    println!("wrote mine.safetensors for {:?}", train.classes());
    Ok(())
}
