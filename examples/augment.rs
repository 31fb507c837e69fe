//! Look at what augmentation makes of an image before training with it.
//!
//! Run with `cargo run --release --example augment -- rex.jpg sheet.png`

use petnet::augment::{Augment, Key};
use petnet::preprocess::{Limits, Preprocess, Resize, decode};

const SIZE: u32 = 128;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let photo = arguments.next().ok_or("usage: augment PHOTO [PNG]")?;
    let sheet = arguments.next().unwrap_or_else(|| "sheet.png".into());
    let photo = decode(&std::fs::read(photo)?, &Limits::default())?;
    let augment = Augment { rotation: 25.0, horizontal_flip: 0.5, ..Augment::default() };
    augment.validate()?;
    let to = Preprocess { size: SIZE, resize: Resize::CenterCrop };
    let mut picture = image::RgbImage::new(SIZE * 8, SIZE);
    for index in 0..8 {
        // The same key gives the same image, on any machine and in any order.
        let changed = augment.apply(&photo, to, Key { seed: 42, epoch: 0, index })?;
        let tile = image::RgbImage::from_raw(SIZE, SIZE, changed.into_data());
        image::imageops::replace(
            &mut picture,
            &tile.ok_or("a tile")?,
            (index as u32 * SIZE).into(),
            0,
        );
    }
    picture.save(&sheet)?;
    println!("wrote {sheet}");
    Ok(())
}
