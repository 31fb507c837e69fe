//! Small drawn images, so that tests need no photographs.
#![allow(dead_code, reason = "each test file takes what it needs")]

use std::fs;
use std::path::Path;

use image::{Rgb, RgbImage};

/// Class 0 has horizontal stripes, class 1 vertical ones, others diagonal; each image differs.
pub(crate) fn drawn(class: usize, number: usize) -> RgbImage {
    let mut noise = (number as u32 + 1).wrapping_mul(2_654_435_761) ^ class as u32;
    let base = 40 + (number * 37 % 120) as u8;
    let phase = number as u32 % 7;
    RgbImage::from_fn(48, 48, |x, y| {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let along = match class {
            0 => y,
            1 => x,
            _ => x + y,
        };
        let stripe = if ((along + phase) / 6).is_multiple_of(2) { 90 } else { 0 };
        let value = base + stripe + (noise >> 28) as u8;
        Rgb([value, value.wrapping_add(number as u8), 255 - value])
    })
}

/// A folder per class with `count` PNG images each.
pub(crate) fn draw_folder(root: &Path, classes: &[&str], count: usize) {
    for (index, class) in classes.iter().enumerate() {
        let folder = root.join(class);
        fs::create_dir_all(&folder).unwrap();
        for number in 0..count {
            drawn(index, number).save(folder.join(format!("{number}.png"))).unwrap();
        }
    }
}
