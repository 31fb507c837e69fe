//! Inspect augmented copies of an image before training with them.
//!
//! Run with `cargo run --release --example augment -- rex.jpg sheet.png`

use petnet::augment::{Augment, Key};
use petnet::preprocess::{Limits, Preprocess, Resize, decode};

const SIZE: u32 = 128;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: augment IMAGE [PNG]")?;
    let sheet = arguments.next().unwrap_or_else(|| "sheet.png".into());
    let image = decode(&std::fs::read(path)?, &Limits::default())?;
    let augment = Augment { rotation: 25.0, horizontal_flip: 0.5, ..Augment::default() };
    augment.validate()?;
    let to = Preprocess { size: SIZE, resize: Resize::CenterCrop };
    let mut tiles = image::RgbImage::new(SIZE * 8, SIZE);
    for index in 0..8 {
        // The same key gives the same image, on any machine and in any order.
        let augmented = augment.apply(&image, to, Key { seed: 42, epoch: 0, index })?;
        let tile = image::RgbImage::from_raw(SIZE, SIZE, augmented.into_data());
        image::imageops::replace(
            &mut tiles,
            &tile.ok_or("a tile")?,
            (index as u32 * SIZE).into(),
            0,
        );
    }
    tiles.save(&sheet)?;
    println!("wrote {sheet}");
    Ok(())
}
