//! Classes of your own from a few images of each: the bundled backbone stays as it is, and the last layer is fitted to
//! its features in seconds. Then the last blocks are trained as well, which pays from some hundred images a class.
//!
//! Run with `cargo run --release --features train --example finetune -- photos`

use petnet::augment::Augment;
use petnet::train::{Freeze, Start};
use petnet::{Calibration, Dataset, Precision, Trainer};

fn main() -> petnet::Result<()> {
    let folder = std::env::args().nth(1).unwrap_or_else(|| "photos".into());
    let (train, valid) = Dataset::open(folder)?.split(0.75)?;
    let fitted = Trainer::default().fit(&train, &valid)?;
    let model = fitted.best.calibrated(&train, &valid, &Calibration::default())?;
    model.save("mine.safetensors", Precision::F32)?;
    println!("last layer: {:.0} % of validation images", fitted.history[0].val_accuracy * 100.0);

    let tuning = Trainer {
        init: Some(Start::File("mine.safetensors".into())),
        freeze: Some(Freeze::Blocks(15)),
        epochs: 2,
        batch_size: 16,
        learning_rate: 1e-4,
        augment: Augment { erasing: 0.0, ..Augment::default() },
        ..Trainer::default()
    };
    let fitted = tuning.fit(&train, &valid)?;
    let best = fitted.history.iter().map(|epoch| epoch.val_accuracy).fold(0.0, f64::max);
    println!("last block: {:.0} % of validation images", best * 100.0);
    let model = fitted.best.calibrated(&train, &valid, &Calibration::default())?;
    model.save("mine.safetensors", Precision::F32)?;
    println!("wrote mine.safetensors for {:?}", train.classes());
    Ok(())
}
