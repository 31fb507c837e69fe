//! Drawn images without an animal, of kinds that cameras and scanners produce.

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

/// Image `number` of a kind, from [`KINDS`].
pub(crate) fn thing(kind: &str, number: u32) -> RgbImage {
    RgbImage::from_fn(SIZE.0, SIZE.1, |x, y| match kind {
        "noise" | "plain" | "gradient" | "stripes" | "checks" | "circles" => {
            Rgb(pattern(kind, number, (x, y)))
        }
        _ => Rgb(scene(kind, number, (x, y))),
    })
}

fn pattern(kind: &str, number: u32, (x, y): (u32, u32)) -> [u8; 3] {
    let (u, v) = (x as f32, y as f32);
    let (a, b) = (colour(number * 2), colour(number * 2 + 1));
    let cell = match kind {
        "noise" => return colour(hash(x, y, number)),
        "plain" => return a,
        "gradient" => return mix(a, b, (u + v * (number % 3) as f32) / 420.0),
        "stripes" => (x * (1 + number % 2) + y * (number % 3)) / (6 + number * 3),
        "checks" => x / (8 + number * 4) + y / (8 + number * 4),
        _ => ((u - 120.0).hypot(v - 90.0) / (8.0 + number as f32 * 2.0)) as u32,
    };
    if cell.is_multiple_of(2) { a } else { b }
}

fn scene(kind: &str, number: u32, (x, y): (u32, u32)) -> [u8; 3] {
    let (u, v, seed) = (x as f32, y as f32, number as f32);
    match kind {
        "page" => {
            let line = (5..11).contains(&(y % 14)) && (16..224).contains(&x) && y > 12;
            let word = hash(x / 3, y / 14, number) % 5 > 1;
            let ink = line && word && !hash(x / 2, y / 2, number).is_multiple_of(3);
            if ink { [30, 30, 40] } else { [250, 248, 240] }
        }
        "chart" if y == 170 || x == 8 => [0; 3],
        "chart" => {
            let bar = x % 30 > 8 && 170 - y.min(170) < 30 + hash(x / 30, 1, number) % 120;
            if bar { colour(number) } else { [255; 3] }
        }
        "clouds" => mix(colour(number * 2), colour(number * 2 + 1), clouds(u, v, seed)),
        "landscape" if v < 80.0 + 25.0 * clouds(u, 0.0, seed) => {
            mix([120, 170, 230], [235, 240, 250], clouds(u, v * 2.0, seed))
        }
        "landscape" => mix([40, 90, 30], [120, 150, 60], clouds(u * 6.0, v * 6.0, seed + 0.5)),
        "bricks" => {
            let (row, along) = (y / 16, x + y / 16 % 2 * 18);
            let tone = (hash(along / 36, row, number) % 40) as u8;
            let joint = y % 16 < 2 || along % 36 < 2;
            if joint { [190, 185, 175] } else { [150 + tone, 70 + tone / 2, 50] }
        }
        _ => {
            let grain = (hash(x, y, number) % 50) as f32 / 200.0;
            mix([4, 4, 8], [40, 36, 30], clouds(u, v, seed) * 0.5 + grain)
        }
    }
}
