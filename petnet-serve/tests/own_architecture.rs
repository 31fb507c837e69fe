//! An architecture that this crate has never heard of is served from its model file.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;
#[path = "../../petnet/tests/common/toy.rs"]
mod toy;

use common::Server;
use image::{Rgb, RgbImage};
use petnet::arch::Architecture;
use petnet::augment::Augment;
use petnet::{Dataset, Trainer};
use toy::ToyConfig;

fn draw(class: usize, number: u32) -> RgbImage {
    RgbImage::from_fn(32, 32, |x, y| {
        let light = if (([x, y][class] + number) / 4).is_multiple_of(2) { 210 } else { 40 };
        Rgb([light, light, number as u8])
    })
}

#[test]
fn a_network_that_no_table_knows_is_served() {
    let folder = tempfile::tempdir().unwrap();
    for (class, name) in ["across", "along"].iter().enumerate() {
        let photos = folder.path().join("photos").join(name);
        std::fs::create_dir_all(&photos).unwrap();
        (0..12).for_each(|n| draw(class, n).save(photos.join(format!("{n}.png"))).unwrap());
    }
    let photos = Dataset::open(folder.path().join("photos")).unwrap();
    let trainer = Trainer {
        architecture: Architecture::new(ToyConfig { width: 8 }),
        image_size: 32,
        epochs: 20,
        batch_size: 8,
        learning_rate: 1e-2,
        ema_decay: 0.0,
        augment: Augment::none(),
        ..Trainer::default()
    };
    let model = folder.path().join("toy.safetensors");
    trainer.fit(&photos, &photos).unwrap().save(&model).unwrap();
    let server = Server::start(&["--model", model.to_str().unwrap(), "--feedback", "off"]);
    assert_eq!(server.get("/version").json()["model"]["architecture"], "toy");
    let mut png = std::io::Cursor::new(Vec::new());
    draw(1, 5).write_to(&mut png, image::ImageFormat::Png).unwrap();
    let photo = png.into_inner();
    let header = [("content-type", "image/png")];
    let answer = server.post("/predict", &header, &photo).json();
    assert_eq!(answer["predicted_class"], "along", "{answer}");
    let heat = server.post("/explain", &header, &photo);
    assert!(heat.body.starts_with(b"\x89PNG"), "{}", heat.status);
}
