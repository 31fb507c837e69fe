//! Memory and time of decoding: never more than was said beforehand.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "common/hostile.rs"]
mod hostile;

use std::io::Cursor;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hostile::{PNG_KINDS, gif, jpeg, png, profile, text, webp};
use image::{DynamicImage, ImageFormat};
use peak_alloc::PeakAlloc;
use petnet::ImageError;
use petnet::preprocess::{Limits, Preprocess, Resize};
use proptest::prelude::*;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// One test at a time: the allocator counts the whole process.
fn alone() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

const SQUARE: Preprocess = Preprocess { size: 224, resize: Resize::Squeeze };

/// Decodes; the outcome, most bytes taken at a time, most bytes announced, and the time. A refusal by the header
/// announces what its reading may take.
fn measure(bytes: &[u8], limits: &Limits) -> (Result<(), ImageError>, u64, u64, Duration) {
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    let began = Instant::now();
    let announced = SQUARE.memory(bytes, limits);
    let outcome = match &announced {
        Ok(_) => SQUARE.run(bytes, limits).map(drop),
        Err(error) => Err(error.clone()),
    };
    let took = began.elapsed();
    let peak = MEMORY.peak_usage().saturating_sub(before) as u64;
    (outcome, peak, announced.unwrap_or((8 << 20) + 2 * bytes.len() as u64), took)
}

fn within(what: &str, bytes: &[u8]) -> Result<(), ImageError> {
    let (outcome, peak, announced, took) = measure(bytes, &Limits::default());
    let kilobytes = [bytes.len() as u64, peak, announced].map(|bytes| bytes / 1024);
    println!("{what}: {kilobytes:?} kB (file, taken, announced), {took:?}, {outcome:?}");
    assert!(peak <= announced, "{what}: {peak} bytes of memory, {announced} announced");
    assert!(took < Duration::from_secs(20), "{what}: {took:?}");
    outcome
}

/// An image with some detail.
fn drawn(width: u32, height: u32) -> DynamicImage {
    let color =
        |x, y| image::Rgb([(x * 7 % 256) as u8, (y * 5 % 256) as u8, ((x ^ y) % 256) as u8]);
    DynamicImage::from(image::RgbImage::from_fn(width, height, color))
}

#[test]
fn every_format_takes_no_more_than_announced() {
    let _alone = alone();
    let picture = drawn(1500, 1100);
    let rgba = DynamicImage::from(picture.to_rgba8());
    let deep = DynamicImage::from(picture.to_rgba16());
    let grey = DynamicImage::from(picture.to_luma8());
    // So large that constant amounts do not hide what grows with the pixels.
    let large_grey = DynamicImage::from(image::GrayImage::new(1700, 29_000));
    let small = drawn(300, 200);
    for (name, picture, format) in [
        ("JPEG", &picture, ImageFormat::Jpeg),
        ("small JPEG", &small, ImageFormat::Jpeg),
        ("grey JPEG", &grey, ImageFormat::Jpeg),
        ("large grey JPEG", &large_grey, ImageFormat::Jpeg),
        ("PNG", &picture, ImageFormat::Png),
        ("grey PNG", &grey, ImageFormat::Png),
        ("RGBA PNG", &rgba, ImageFormat::Png),
        ("deep PNG", &deep, ImageFormat::Png),
        ("WebP", &picture, ImageFormat::WebP),
        ("RGBA WebP", &rgba, ImageFormat::WebP),
        ("GIF", &rgba, ImageFormat::Gif),
        ("BMP", &picture, ImageFormat::Bmp),
    ] {
        let mut bytes = Cursor::new(Vec::new());
        picture.write_to(&mut bytes, format).unwrap();
        assert_eq!(within(name, &bytes.into_inner()), Ok(()), "{name}");
    }
    assert_eq!(within("phone", include_bytes!("golden/waves-turned.jpg")), Ok(()));
}

#[test]
fn extreme_aspects_are_resized_by_their_short_side_first() {
    let _alone = alone();
    let grey = PNG_KINDS[0];
    let wide = png(60_000, 800, grey, &[]);
    assert_eq!(within("wide", &wide), Ok(()));
    assert_eq!(within("tall", &png(800, 60_000, grey, &[])), Ok(()));
    assert_eq!(within("line", &png(65_535, 1, grey, &[])), Ok(()));
    let refused = within("longer line", &png(3_200_000, 1, grey, &[]));
    assert!(matches!(refused, Err(ImageError::TooLong { width: 3_200_000, .. })), "{refused:?}");
}

#[test]
fn compressed_metadata_is_bounded() {
    let _alone = alone();
    let rgb = PNG_KINDS[2];
    assert_eq!(within("1 MB profile", &png(64, 64, rgb, &[profile(1 << 20)])), Ok(()));
    // Left out or refused: either way it was not expanded.
    let _ = within("1 GB profile", &png(64, 64, rgb, &[profile(1 << 30)]));
    let many: Vec<_> = (0..200).map(|_| text(1 << 20)).collect();
    // Text chunks stay compressed; they are never read.
    let _ = within("texts", &png(64, 64, rgb, &many));
}

#[test]
fn scans_are_bounded_by_count_and_by_size() {
    let _alone = alone();
    assert_eq!(within("ten scans", &jpeg(1200, 900, 10)), Ok(()));
    let most = within("100 scans of 8 megapixels", &jpeg(3264, 2448, 99));
    assert!(!matches!(most, Err(ImageError::TooManyScans { .. })), "{most:?}");
    let many = within("11,000 scans", &jpeg(3264, 2448, 11_000));
    assert_eq!(many, Err(ImageError::TooManyScans { scans: 11_000, limit: 100 }));
    let large = within("17 scans of 49 megapixels", &jpeg(7000, 7000, 17));
    assert_eq!(large, Err(ImageError::TooManyScans { scans: 17, limit: 16 }));
    let most = within("16 scans of 49 megapixels", &jpeg(7000, 7000, 16));
    assert!(!matches!(most, Err(ImageError::TooManyScans { .. })), "{most:?}");
}

#[test]
fn frames_larger_than_their_canvas_are_refused() {
    let _alone = alone();
    let refused = within("WebP", &webp([10, 10], [16_383, 16_383]));
    assert_eq!(refused, Err(ImageError::Broken("a frame is larger than the canvas".into())));
    let _ = within("GIF", &gif([10, 10], [65_535, 65_535]));
    assert_eq!(within("one GIF", &gif([1000, 700], [1000, 700])), Ok(()));
    assert_eq!(within("small frame", &gif([1000, 700], [900, 600])), Ok(()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn hostile_images_stay_within_what_was_announced(
        kind in 0..PNG_KINDS.len(),
        exponents in (0.0..17.0f64, 0.0..17.0f64),
        expanded in 0..40_000_000u64,
        scans in 1..400usize,
        format in 0..4,
    ) {
        let _alone = alone();
        let side = |exponent: f64| exponent.exp2() as u32 + 1;
        let (width, height) = (side(exponents.0), side(exponents.1));
        // The generator itself must end: no more than 100 megapixels.
        let height = height.min(100_000_000 / width).max(1);
        let small = |side: u32| side.min(16_383) as u16;
        let bytes = match format {
            0 => png(width, height, PNG_KINDS[kind], &[profile(expanded), text(expanded)]),
            1 => jpeg(small(width), small(height), scans),
            2 => gif([small(width), small(height)], [small(height), small(width)]),
            _ => webp([width.min(20_000), height.min(20_000)], [small(height), small(width)]),
        };
        let _ = within("drawn", &bytes);
    }
}
