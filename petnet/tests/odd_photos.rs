//! Unusual images that phones, scanners and old programs write.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use image::{ImageFormat, Rgb, RgbImage};
use petnet::ImageError;
use petnet::preprocess::{
    Limits, Preprocess, REDUCED_JPEG_PIXEL_FACTOR, Resize, decode, decode_at_least,
};

fn jpeg(width: u32, height: u32) -> Vec<u8> {
    let image = RgbImage::from_fn(width, height, |x, y| {
        Rgb([(x * 255 / width) as u8, (y * 255 / height) as u8, 90])
    });
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, ImageFormat::Jpeg).unwrap();
    bytes.into_inner()
}

#[test]
fn photos_beyond_the_limit_are_read_at_a_reduced_size() {
    let limits = Limits { max_pixels: 1 << 20, ..Limits::default() };
    let photo = jpeg(2000, 1600);
    assert!(matches!(decode(&photo, &limits), Err(ImageError::TooManyPixels { .. })));
    let reduced = decode_at_least(&photo, &limits, 160).unwrap();
    assert_eq!((reduced.width(), reduced.height()), (500, 400));
    let network = Preprocess { size: 128, resize: Resize::CenterCrop };
    let (pixels, own) = network.run_measured(&photo, &limits).unwrap();
    assert_eq!((pixels.width(), own), (128, (2000, 1600)));
    // The claim on memory is of the reduced size, too.
    assert!(network.memory(&photo, &limits).unwrap() < 12 << 20);
    let larger = jpeg(2600, 2600);
    assert!(u64::from(2600u32 * 2600) > REDUCED_JPEG_PIXEL_FACTOR * limits.max_pixels);
    assert!(matches!(
        decode_at_least(&larger, &limits, 160),
        Err(ImageError::TooManyPixels { .. })
    ));
}

#[test]
fn a_bmp_of_a_program_without_transparency_is_opaque() {
    // 32 bits with masks (BITMAPV4HEADER), the alpha byte of all pixels zero.
    let bmp = |alpha: u8| {
        let mut bytes = b"BM".to_vec();
        bytes.extend((14 + 108 + 16u32).to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend((14 + 108u32).to_le_bytes());
        bytes.extend(108u32.to_le_bytes());
        bytes.extend(2i32.to_le_bytes());
        bytes.extend(2i32.to_le_bytes());
        bytes.extend([1, 0, 32, 0]);
        bytes.extend(3u32.to_le_bytes());
        bytes.extend([0; 20]);
        for mask in [0x00ff_0000u32, 0x0000_ff00, 0x0000_00ff, 0xff00_0000] {
            bytes.extend(mask.to_le_bytes());
        }
        bytes.extend([0; 52]);
        bytes.extend([10, 20, 30, alpha].repeat(4));
        decode(&bytes, &Limits::default()).unwrap().into_data()
    };
    assert_eq!(bmp(0), [30, 20, 10].repeat(4));
    assert_eq!(bmp(255), [30, 20, 10].repeat(4));
    assert!(bmp(128).iter().all(|value| *value > 100), "half of it is white");
}

#[test]
fn what_is_not_read_is_named() {
    let mut arithmetic = jpeg(16, 16);
    let frame = arithmetic.windows(2).position(|marker| marker == [0xff, 0xc0]).unwrap();
    arithmetic[frame + 1] = 0xc9;
    let error = decode(&arithmetic, &Limits::default()).unwrap_err().to_string();
    assert!(error.contains("arithmetic coding"), "{error}");
    for (head, name) in [
        (&b"\0\0\0\x18ftypheic\0\0\0\0"[..], "HEIC is not read: convert"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "AVIF"),
        (b"II*\0\x08\0\0\0", "TIFF"),
        (b"\x1f\x8b\x08\0", "gzip"),
    ] {
        let error = decode(head, &Limits::default()).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
}

#[test]
fn an_orientation_of_four_bytes_turns_the_photo() {
    let upright = jpeg(40, 20);
    let mut tiff = b"MM\0*\0\0\0\x08\0\x01".to_vec();
    tiff.extend([0x01, 0x12, 0, 4, 0, 0, 0, 1, 0, 0, 0, 6, 0, 0, 0, 0]);
    let content = [b"Exif\0\0", &tiff[..]].concat();
    let mut turned = upright[..2].to_vec();
    turned.extend([0xff, 0xe1]);
    turned.extend((content.len() as u16 + 2).to_be_bytes());
    turned.extend(content);
    turned.extend(&upright[2..]);
    let pixels = decode(&turned, &Limits::default()).unwrap();
    assert_eq!((pixels.width(), pixels.height()), (20, 40));
}
