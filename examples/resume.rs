//! Train so that a kill costs minutes at most: run it again and it goes on, to the same weights.
//!
//! Run with `cargo run --release --example resume -- photos models`

use petnet::preprocess::{Preprocess, Resize};
use petnet::train::Freeze;
use petnet::{Dataset, Trainer};

fn main() -> petnet::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let images = arguments.next().unwrap_or_else(|| "photos".into());
    let models = arguments.next().unwrap_or_else(|| "models".into());
    let (train, valid) = Dataset::open(images)?.split(0.8)?;
    let trainer = Trainer {
        freeze: Some(Freeze::Blocks(15)), // the last block and what follows is trained
        preprocess: Preprocess { size: 64, resize: Resize::Squeeze },
        epochs: 4,
        batch_size: 8,
        out: Some(models.into()), // the state is kept here, after each epoch and every 200 steps
        resume: true,             // without a state there, from the beginning
        ..Trainer::default()
    };
    let fitted = trainer.fit(&train, &valid)?;
    println!("{} epochs, the weights of the best are in {}", fitted.history.len(), Trainer::BEST);
    Ok(())
}
