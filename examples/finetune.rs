//! Teach the bundled network classes of your own: first its last layer alone, then all of it. With
//! `init: Some(Start::File("resnet18.pth".into()))` and `Architecture::named("resnet18")?` it starts from torchvision's.
//!
//! Run with `cargo run --release --features train --example finetune -- photos`

use petnet::arch::Architecture;
use petnet::preprocess::Preprocess;
use petnet::train::{Freeze, Start};
use petnet::{Checkpoint, Dataset, Trainer};

fn main() -> petnet::Result<()> {
    let folder = std::env::args().nth(1).unwrap_or_else(|| "photos".into());
    let (train, valid) = Dataset::open(folder)?.split(0.75)?;
    let start = std::env::temp_dir().join(format!("petnet-{}.safetensors", std::process::id()));
    petnet::write_atomically(&start, Checkpoint::pretrained_bytes())?;
    let bundled = Checkpoint::pretrained()?.info().clone();
    let frozen = Trainer {
        architecture: Architecture::new(bundled.graph),
        preprocess: Preprocess { size: 64, ..bundled.preprocess },
        init: Some(Start::File(start.clone())),
        freeze: Freeze::Backbone,
        epochs: 4,
        batch_size: 8,
        ema_decay: 0.0,
        ..Trainer::default()
    };
    let head = frozen.fit(&train, &valid)?;
    head.save(&start)?;
    let whole = Trainer { freeze: Freeze::Nothing, learning_rate: 2e-4, ..frozen };
    let fitted = whole.fit(&train, &valid)?;
    fitted.save("tuned.safetensors")?;
    std::fs::remove_file(&start).ok();
    for (what, fitted) in [("last layer", &head), ("whole network", &fitted)] {
        let best = fitted.history.iter().map(|epoch| epoch.val_accuracy).fold(0.0, f64::max);
        println!("{what}: {:.0} % of validation photos", best * 100.0);
    }
    println!("wrote tuned.safetensors for {:?}", train.classes());
    Ok(())
}
