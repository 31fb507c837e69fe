//! Drawn pictures of no animal: what a camera, a scanner or a prankster may send.

use image::{Rgb, RgbImage};

const SIZE: (u32, u32) = (240, 180);

pub(crate) const KINDS: [&str; 12] = [
    "noise",
    "plain",
    "gradient",
    "stripes",
    "checks",
    "circles",
    "page",
    "chart",
    "clouds",
    "landscape",
    "bricks",
    "night",
];

/// A smooth function of a place: layers of waves, each finer and weaker.
fn clouds(x: f32, y: f32, seed: f32) -> f32 {
    (1..6)
        .map(|octave| {
            let scale = 2f32.powi(octave) * 0.012;
            let turn = seed * 1.7 + octave as f32 * 2.1;
            let (u, v) = (x * turn.cos() + y * turn.sin(), y * turn.cos() - x * turn.sin());
            ((u * scale + turn).sin() + (v * scale * 1.3 + turn * 2.0).cos()) / 2f32.powi(octave)
        })
        .sum::<f32>()
        * 0.5
        + 0.5
}

fn hash(x: u32, y: u32, seed: u32) -> u32 {
    let mut value =
        x.wrapping_mul(374_761_393) ^ y.wrapping_mul(668_265_263) ^ seed.wrapping_mul(0x9e37_79b9);
    value = (value ^ (value >> 13)).wrapping_mul(1_274_126_177);
    value ^ (value >> 16)
}

fn mix(a: [u8; 3], b: [u8; 3], share: f32) -> [u8; 3] {
    let share = share.clamp(0.0, 1.0);
    [0, 1, 2].map(|c| (f32::from(a[c]) * (1.0 - share) + f32::from(b[c]) * share) as u8)
}

fn colour(seed: u32) -> [u8; 3] {
    let h = hash(seed, 7, 3);
    [h as u8, (h >> 8) as u8, (h >> 16) as u8]
}

/// Picture `number` of a kind, from [`KINDS`].
pub(crate) fn thing(kind: &str, number: u32) -> RgbImage {
    let (a, b) = (colour(number * 2), colour(number * 2 + 1));
    RgbImage::from_fn(SIZE.0, SIZE.1, |x, y| {
        let (u, v) = (x as f32, y as f32);
        Rgb(match kind {
            "noise" => colour(hash(x, y, number)),
            "plain" => a,
            "gradient" => mix(a, b, (u + v * (number % 3) as f32) / 420.0),
            "stripes" => {
                if (x * (1 + number % 2) + y * (number % 3)) / (6 + number * 3) % 2 == 0 {
                    a
                } else {
                    b
                }
            }
            "checks" => {
                if (x / (8 + number * 4) + y / (8 + number * 4)) % 2 == 0 {
                    a
                } else {
                    b
                }
            }
            "circles" => {
                let (dx, dy) = (u - 120.0, v - 90.0);
                if ((dx * dx + dy * dy).sqrt() / (8.0 + number as f32 * 2.0)) as u32 % 2 == 0 {
                    a
                } else {
                    b
                }
            }
            "page" => {
                let line = y % 14 > 4 && y % 14 < 11 && (16..224).contains(&x) && y > 12;
                let ink = line
                    && hash(x / 3, y / 14, number) % 5 > 1
                    && hash(x / 2, y / 2, number) % 3 > 0;
                if ink { [30, 30, 40] } else { [250, 248, 240] }
            }
            "chart" => {
                let height = 30 + hash(x / 30, 1, number) % 120;
                let bar = x % 30 > 8 && 170 - y.min(170) < height;
                if bar {
                    a
                } else if y == 170 || x == 8 {
                    [0; 3]
                } else {
                    [255; 3]
                }
            }
            "clouds" => mix(a, b, clouds(u, v, number as f32)),
            "landscape" => {
                let horizon = 80.0 + 25.0 * clouds(u, 0.0, number as f32);
                let grain = clouds(u * 6.0, v * 6.0, number as f32 + 0.5);
                if v < horizon {
                    mix([120, 170, 230], [235, 240, 250], clouds(u, v * 2.0, number as f32))
                } else {
                    mix([40, 90, 30], [120, 150, 60], grain)
                }
            }
            "bricks" => {
                let row = y / 16;
                let joint = y % 16 < 2 || (x + row % 2 * 18) % 36 < 2;
                let tone = hash((x + row % 2 * 18) / 36, row, number) % 40;
                if joint { [190, 185, 175] } else { [150 + tone as u8, 70 + (tone / 2) as u8, 50] }
            }
            _ => mix(
                [4, 4, 8],
                [40, 36, 30],
                clouds(u, v, number as f32) * 0.5 + (hash(x, y, number) % 50) as f32 / 200.0,
            ),
        })
    })
}
