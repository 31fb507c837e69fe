//! Pixels compared with Pillow's, and hostile input.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::Cursor;

use image::{DynamicImage, ImageFormat};
use petnet::ImageError;
use petnet::preprocess::{Limits, Pixels, Preprocess, Resize, decode, decode_at_least};

const WAVES: &[u8] = include_bytes!("golden/waves.png");
const LIMITS: Limits = Limits {
    max_bytes: 1 << 20,
    max_side: 5000,
    max_pixels: 1_000_000,
    max_scans: 100,
    max_alloc: 16 << 20,
};

fn encode(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// Largest and mean difference of two images of one size, of 255.
fn difference(ours: &Pixels, theirs: &[u8]) -> (u8, f64) {
    let theirs = decode(theirs, &LIMITS).unwrap();
    assert_eq!((ours.width(), ours.height()), (theirs.width(), theirs.height()));
    let pairs = ours.data().iter().zip(theirs.data()).map(|(a, b)| a.abs_diff(*b));
    let sum: u64 = pairs.clone().map(u64::from).sum();
    (pairs.max().unwrap(), sum as f64 / ours.data().len() as f64)
}

#[test]
fn squeezing_agrees_with_pillow_but_where_lanczos_overshoots() {
    // Both clip to 0..=255 between the two passes, but run the passes in another order.
    let ours = Preprocess { size: 64, resize: Resize::Squeeze }.run(WAVES, &LIMITS).unwrap();
    let (most, mean) = difference(&ours, include_bytes!("golden/waves-squeeze-64.png"));
    assert!(most <= 8 && mean < 0.1, "{most} {mean}");
}

#[test]
fn center_crop_agrees_with_pillow_but_for_its_rounding_of_the_size() {
    // Pillow must crop at whole pixels; we crop at the exact middle.
    let ours = Preprocess { size: 64, resize: Resize::CenterCrop }.run(WAVES, &LIMITS).unwrap();
    let (_, mean) = difference(&ours, include_bytes!("golden/waves-crop-64.png"));
    assert!(mean < 12.0, "{mean}");
}

#[test]
fn a_jpeg_agrees_with_pillow_within_decoder_rounding() {
    let ours = Preprocess { size: 64, resize: Resize::Squeeze }
        .run(include_bytes!("golden/waves.jpg"), &LIMITS)
        .unwrap();
    let (most, mean) = difference(&ours, include_bytes!("golden/waves-jpeg-64.png"));
    assert!(most <= 4 && mean < 1.0, "{most} {mean}");
}

#[test]
fn a_cmyk_jpeg_has_the_colours_of_its_rgb_twin() {
    let ours = decode(include_bytes!("golden/waves-cmyk.jpg"), &LIMITS).unwrap();
    let (_, mean) = difference(&ours, WAVES);
    assert!(mean < 6.0, "{mean}");
}

#[test]
fn exif_orientation_turns_the_picture_upright() {
    let turned = decode(include_bytes!("golden/waves-turned.jpg"), &LIMITS).unwrap();
    assert_eq!((turned.width(), turned.height()), (150, 200));
}

#[test]
fn a_large_jpeg_at_reduced_scale_looks_the_same() {
    let large = image::load_from_memory(WAVES).unwrap().resize_exact(
        1600,
        1200,
        image::imageops::FilterType::Triangle,
    );
    let bytes = encode(&large, ImageFormat::Jpeg);
    let limits = Limits { max_pixels: 2_000_000, ..LIMITS };
    let reduced = decode_at_least(&bytes, &limits, 64).unwrap();
    assert!(reduced.width() < 1600 && reduced.height() >= 128, "{}", reduced.height());
    let small = petnet::preprocess::resize(&reduced, 64, Resize::Squeeze).unwrap();
    let whole =
        petnet::preprocess::resize(&decode(&bytes, &limits).unwrap(), 64, Resize::Squeeze).unwrap();
    let sum: u64 =
        small.data().iter().zip(whole.data()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    let mean = sum as f64 / small.data().len() as f64;
    assert!(mean < 1.5, "{mean}");
}

#[test]
fn every_format_and_depth_is_read() {
    let base = image::load_from_memory(WAVES).unwrap();
    let variants = [
        (DynamicImage::ImageRgb8(base.to_rgb8()), ImageFormat::Jpeg),
        (DynamicImage::ImageLuma8(base.to_luma8()), ImageFormat::Jpeg),
        (DynamicImage::ImageRgb16(base.to_rgb16()), ImageFormat::Png),
        (DynamicImage::ImageLuma16(base.to_luma16()), ImageFormat::Png),
        (DynamicImage::ImageLumaA8(base.to_luma_alpha8()), ImageFormat::Png),
        (DynamicImage::ImageRgba8(base.to_rgba8()), ImageFormat::WebP),
        (DynamicImage::ImageRgba8(base.to_rgba8()), ImageFormat::Gif),
        (DynamicImage::ImageRgb8(base.to_rgb8()), ImageFormat::Bmp),
    ];
    for (picture, format) in variants {
        let pixels = decode(&encode(&picture, format), &LIMITS).unwrap();
        assert_eq!((pixels.width(), pixels.height()), (200, 150), "{format:?}");
    }
}

#[test]
fn what_is_transparent_turns_white() {
    let clear = image::RgbaImage::from_pixel(4, 4, image::Rgba([200, 0, 0, 0]));
    let pixels = decode(&encode(&clear.into(), ImageFormat::Png), &LIMITS).unwrap();
    assert!(pixels.data().iter().all(|c| *c == 255));
}

#[test]
fn each_limit_has_its_own_refusal() {
    assert_eq!(decode(b"", &LIMITS), Err(ImageError::Empty));
    assert_eq!(decode(b"hello, world", &LIMITS), Err(ImageError::UnknownFormat));
    let tight = Limits { max_bytes: 10, ..LIMITS };
    assert!(matches!(decode(WAVES, &tight), Err(ImageError::TooLarge { limit: 10, .. })));
    let tight = Limits { max_pixels: 100, ..LIMITS };
    let refused = decode(WAVES, &tight);
    assert_eq!(refused, Err(ImageError::TooManyPixels { width: 200, height: 150, limit: 100 }));
    let tight = Limits { max_alloc: 1000, ..LIMITS };
    assert_eq!(decode(WAVES, &tight), Err(ImageError::TooMuchMemory));
}

#[test]
fn a_bomb_is_refused_by_its_header() {
    // 50,000 x 50,000 pixels claimed by 41 bytes.
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
    png.extend(50_000u32.to_be_bytes());
    png.extend(50_000u32.to_be_bytes());
    png.extend([8, 2, 0, 0, 0]);
    png.extend(crc(&png[12..]).to_be_bytes());
    png.extend(b"\0\0\0\x01IDAT\0");
    assert!(matches!(
        decode(&png, &Limits::default()),
        Err(ImageError::TooManyPixels { width: 50_000, .. })
    ));
}

/// CRC-32 as PNG defines it.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| (c >> 1) ^ (0xedb8_8320 * (c & 1)))
    })
}

#[test]
fn a_jpeg_that_ends_early_is_refused_at_any_length() {
    let whole = include_bytes!("golden/waves.jpg");
    for length in (1..whole.len()).step_by(97) {
        assert!(decode(&whole[..length], &LIMITS).is_err(), "cut to {length} bytes");
    }
}

#[test]
fn no_format_panics_when_cut_anywhere() {
    let small = image::load_from_memory(WAVES).unwrap().thumbnail(24, 24);
    let rgba = DynamicImage::ImageRgba8(small.to_rgba8());
    for format in [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Gif, ImageFormat::Bmp] {
        let whole = encode(&rgba, format);
        for length in 0..whole.len() {
            assert_ne!(decode(&whole[..length], &LIMITS), Err(ImageError::DecoderPanicked));
        }
    }
}

#[test]
fn altered_bytes_give_pixels_or_an_error() {
    let whole = include_bytes!("golden/waves.jpg");
    let mut noise = 1u32;
    for place in (0..whole.len()).step_by(11) {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let mut bytes = whole.to_vec();
        bytes[place] = (noise >> 24) as u8;
        if let Ok(pixels) = decode(&bytes, &LIMITS) {
            let area = u64::from(pixels.width()) * u64::from(pixels.height());
            assert!(area <= LIMITS.max_pixels, "byte {place}");
        }
    }
}
