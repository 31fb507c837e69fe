//! The eight orientations of a square image: rotations by quarter turns, each with its mirror image.

use image::RgbImage;
use image::imageops::{flip_horizontal, rotate90};
use petnet::preprocess::Pixels;

/// All orientations of a square image, the image itself first.
pub(super) fn all(pixels: Pixels) -> Vec<Pixels> {
    let mut orientations = vec![pixels];
    let [width, height] = [orientations[0].width(), orientations[0].height()];
    let Some(image) = RgbImage::from_raw(width, height, orientations[0].data().to_vec()) else {
        return orientations;
    };
    let mirrored = flip_horizontal(&image);
    for mut image in [image, mirrored] {
        for _ in 0..4 {
            image = rotate90(&image);
            orientations.extend(Pixels::new(width, height, image.as_raw().clone()));
        }
    }
    // The fourth quarter turn restores the image, which is in the list already.
    orientations.remove(4);
    orientations
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_square_has_eight_distinct_orientations() {
        let corner = |bright: usize| {
            let mut data = vec![0; 2 * 2 * 3];
            data[bright * 3] = 200;
            data[(bright + 1) % 4 * 3] = 100;
            Pixels::new(2, 2, data).unwrap()
        };
        let orientations = all(corner(0));
        assert_eq!(orientations.len(), 8);
        assert_eq!(orientations[0].data(), corner(0).data());
        let mut distinct: Vec<&[u8]> = orientations.iter().map(Pixels::data).collect();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), 8);
    }
}
