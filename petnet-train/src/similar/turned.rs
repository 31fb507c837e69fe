//! An image in the eight ways that a square can lie: turned by quarters, and mirrored.

use image::RgbImage;
use image::imageops::{flip_horizontal, rotate90};
use petnet::preprocess::Pixels;

/// The image itself first. It must be square.
pub(super) fn all(pixels: Pixels) -> Vec<Pixels> {
    let mut ways = vec![pixels];
    let [width, height] = [ways[0].width(), ways[0].height()];
    let Some(image) = RgbImage::from_raw(width, height, ways[0].data().to_vec()) else {
        return ways;
    };
    let mirrored = flip_horizontal(&image);
    for mut image in [image, mirrored] {
        for _ in 0..4 {
            image = rotate90(&image);
            ways.extend(Pixels::new(width, height, image.as_raw().clone()));
        }
    }
    // Four quarter turns give the image itself again.
    ways.remove(4);
    ways
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_square_can_lie_in_eight_ways() {
        let corner = |bright: usize| {
            let mut data = vec![0; 2 * 2 * 3];
            data[bright * 3] = 200;
            data[(bright + 1) % 4 * 3] = 100;
            Pixels::new(2, 2, data).unwrap()
        };
        let ways = all(corner(0));
        assert_eq!(ways.len(), 8);
        assert_eq!(ways[0].data(), corner(0).data());
        let mut distinct: Vec<&[u8]> = ways.iter().map(Pixels::data).collect();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), 8);
    }
}
