//! The network that ships inside the crate.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![cfg(feature = "pretrained")]

mod common;
#[path = "common/things.rs"]
mod things;

use std::io::Cursor;

use common::drawn;
use petnet::{Classifier, Decision};
use things::{KINDS, thing};

const IMAGES_PER_KIND: u32 = 8;

fn png(picture: &image::RgbImage) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

#[test]
fn it_is_small_and_answers_offline_from_any_thread() {
    let size = include_bytes!("../models/cats-vs-dogs.safetensors").len();
    assert!(size < 5_000_000, "{size} bytes");
    let classifier = Classifier::pretrained().unwrap();
    assert_eq!(classifier.labels(), ["cat", "dog"]);
    let photo = png(&drawn(0, 0));
    let classify = || classifier.classify_bytes(&photo).unwrap();
    let answers = std::thread::scope(|scope| {
        let threads = [scope.spawn(classify), scope.spawn(classify)];
        threads.map(|thread| thread.join().unwrap())
    });
    assert_eq!(answers[0], answers[1]);
    assert!((answers[0].probabilities().iter().sum::<f32>() - 1.0).abs() < 1e-5);
}

#[test]
fn it_says_where_it_came_from() {
    let classifier = Classifier::pretrained().unwrap();
    let info = classifier.info();
    assert_eq!(info.data_digest.len(), 64);
    assert!(info.settings.get("seed").is_some() && info.history.is_array());
}

#[test]
fn it_is_unsure_about_most_drawn_pictures_of_no_animal() {
    let classifier = Classifier::pretrained().unwrap();
    let (mut far, mut unsure) = (0, 0);
    for kind in KINDS {
        let mut of_kind = 0;
        for number in 0..IMAGES_PER_KIND {
            let guess = classifier.classify_bytes(&png(&thing(kind, number))).unwrap();
            of_kind += u32::from(guess.decision() == Decision::OutOfDistribution);
            unsure += u32::from(!guess.is_answered());
        }
        println!("{kind}: {of_kind} of {IMAGES_PER_KIND} out of distribution");
        far += of_kind;
    }
    let all = KINDS.len() as u32 * IMAGES_PER_KIND;
    println!("{far} of {all} out of distribution, {unsure} unsure");
    assert!(unsure * 20 >= all * 19, "{unsure} of {all} unsure");
}

#[cfg(feature = "flex")]
#[test]
fn the_engine_agrees_with_burn_on_drawn_images() {
    use petnet::{Checkpoint, Device};
    let floats = || Checkpoint::pretrained().unwrap().with_quantization(None).unwrap();
    let on = |device| Classifier::new(floats(), device).unwrap();
    let (engine, burn) = (on(Device::Cpu), on(Device::Flex));
    for kind in KINDS {
        let photo = png(&thing(kind, 0));
        let [ours, theirs] = [&engine, &burn].map(|c| c.classify_bytes(&photo).unwrap());
        for (ours, theirs) in ours.probabilities().iter().zip(theirs.probabilities()) {
            assert!((ours - theirs).abs() < 1e-4, "{kind}: {ours} is not {theirs}");
        }
    }
}
