//! Classes of your own from a few images of each: the bundled backbone stays as it is, and the last layer is fitted to
//! its features, in seconds. From some hundred images a class it pays to train the last blocks as well, from this model:
//! `init: Some(Start::File("mine.safetensors".into())), freeze: Some(Freeze::Blocks(8)), epochs: 12`.
//!
//! Run with `cargo run --release --features train --example finetune -- photos`

use petnet::{Calibration, Dataset, Precision, Trainer};

fn main() -> petnet::Result<()> {
    let folder = std::env::args().nth(1).unwrap_or_else(|| "photos".into());
    let (train, valid) = Dataset::open(folder)?.split(0.75)?;
    let fitted = Trainer::default().fit(&train, &valid)?;
    println!("{:.0} % of validation images", fitted.history[0].val_accuracy * 100.0);
    // Probabilities that can be relied on, and `unsure` for images of other things.
    let model = fitted.best.calibrated(&train, &valid, &Calibration::default())?;
    model.save("mine.safetensors", Precision::F32)?;
    println!("wrote mine.safetensors for {:?}", train.classes());
    Ok(())
}
