//! Train with saved states: after an interruption, run it again to resume. The result is the same.
//!
//! Run with `cargo run --release --example resume -- photos models`

use petnet::train::Freeze;
use petnet::{Dataset, Trainer};

fn main() -> petnet::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().unwrap_or_else(|| "photos".into());
    let models = arguments.next().unwrap_or_else(|| "models".into());
    let (train, valid) = Dataset::open(folder)?.split(0.8)?;
    let trainer = Trainer {
        freeze: Some(Freeze::Blocks(15)), // the last block and the layers after it are trained
        image_size: 64,
        epochs: 4,
        batch_size: 8,
        out: Some(models.into()), // the state is saved here after each epoch and every 200 steps
        resume: true,             // starts from the beginning where there is no state
        ..Trainer::default()
    };
    let fitted = trainer.fit(&train, &valid)?;
    println!("{} epochs, the weights of the best are in {}", fitted.history.len(), Trainer::BEST);
    Ok(())
}
