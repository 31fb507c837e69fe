//! A summary of a JPEG file, read from its markers without decoding anything: its number of scans, its end, and the
//! memory that its frame needs. Source: ITU-T T.81, annex B.

use image::metadata::Orientation;

use super::exif;

const SOI: u8 = 0xd8;
const EOI: u8 = 0xd9;
const SOS: u8 = 0xda;
const APP1: u8 = 0xe1;

/// Summary of the markers of a JPEG file, up to its end marker.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct JpegMarkers {
    /// Width and height in pixels, the largest of all frames; zeros without one.
    pub(super) size: (u32, u32),
    /// Number of components of the last frame.
    pub(super) components: u8,
    /// Number of scans.
    pub(super) scans: u64,
    /// Length of the image in bytes, up to its end marker; `None` when that is missing. Some phones
    /// append a video after the end marker.
    pub(super) length: Option<usize>,
    /// Size of all coefficients in bytes, two bytes each.
    pub(super) coefficients: u64,
    /// True where a decoder must keep all coefficients: the image is progressive, or has a scan per component.
    pub(super) keeps_coefficients: bool,
    /// True for a frame with arithmetic coding, which hardly any decoder supports.
    pub(super) arithmetic: bool,
    /// The rotation and mirroring that make the image upright.
    pub(super) orientation: Orientation,
}

impl JpegMarkers {
    /// Reads the markers of a file that begins with the start marker.
    pub(super) fn read(bytes: &[u8]) -> Self {
        let mut markers = Self {
            size: (0, 0),
            components: 0,
            scans: 0,
            length: None,
            coefficients: 0,
            keeps_coefficients: false,
            arithmetic: false,
            orientation: Orientation::NoTransforms,
        };
        let mut at = 2;
        while let Some((marker, start)) = next_marker(bytes, at) {
            at = start;
            match marker {
                EOI => {
                    markers.length = Some(start);
                    break;
                }
                // Markers without a segment: TEM, restart markers in a scan, another start of image.
                0x01 | 0xd0..=0xd7 | SOI => continue,
                _ => (),
            }
            let Some(segment) = segment(bytes, start) else { break };
            match marker {
                SOS => markers.scans += 1,
                // Start of frame; 0xc4 and 0xcc define tables, 0xc8 is reserved.
                0xc0..=0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf => {
                    markers.frame(segment);
                    markers.keeps_coefficients |= matches!(marker, 0xc2 | 0xc6 | 0xca | 0xce);
                    markers.arithmetic |= marker > 0xc8;
                }
                APP1 => {
                    let exif = segment.strip_prefix(b"Exif\0\0");
                    if let Some(found) = exif.and_then(exif::orientation) {
                        markers.orientation = found;
                    }
                }
                _ => (),
            }
            at = start + 2 + segment.len();
        }
        markers.keeps_coefficients |= markers.scans > 1;
        markers
    }

    /// Records a frame's size. The standard forbids a second frame, of which decoders take one or the other.
    fn frame(&mut self, frame: &[u8]) {
        let [_precision, high, low, wide, narrow, count, components @ ..] = frame else { return };
        let side = |high: &u8, low: &u8| u32::from(u16::from_be_bytes([*high, *low]));
        let (width, height) = (side(wide, narrow), side(high, low));
        self.size = (self.size.0.max(width), self.size.1.max(height));
        self.components = *count;
        let components = components.chunks_exact(3).take(usize::from(*count));
        let coefficients = coefficient_bytes(width.into(), height.into(), components.map(|c| c[1]));
        self.coefficients = self.coefficients.max(coefficients.unwrap_or(0));
    }

    /// Size in bytes of the coefficients that a decoder keeps.
    pub(super) fn kept_coefficients(&self) -> u64 {
        if self.keeps_coefficients { self.coefficients } else { 0 }
    }
}

/// The next marker at or after an offset, and the offset behind it. In a scan's data, 0xFF is followed by a zero.
fn next_marker(bytes: &[u8], from: usize) -> Option<(u8, usize)> {
    let rest = bytes.get(from..)?;
    memchr::memchr_iter(0xff, rest).find_map(|at| match rest.get(at + 1) {
        None | Some(0 | 0xff) => None,
        Some(marker) => Some((*marker, from + at + 2)),
    })
}

/// A segment's content, behind the two bytes of its length, which include themselves.
fn segment(bytes: &[u8], start: usize) -> Option<&[u8]> {
    let length = u16::from_be_bytes(*bytes.get(start..)?.first_chunk()?);
    bytes.get(start + 2..start + usize::from(length.max(2)))
}

/// Size in bytes of a frame's coefficients, two bytes each. Components have sampling factors of four bits each, and are
/// padded to whole MCUs; `None` without a component.
fn coefficient_bytes(
    width: u64,
    height: u64,
    factors: impl Iterator<Item = u8> + Clone,
) -> Option<u64> {
    let factors = factors.map(|both| (u64::from(both >> 4).max(1), u64::from(both & 15).max(1)));
    let across = factors.clone().map(|(across, _)| across).max()?;
    let down = factors.clone().map(|(_, down)| down).max()?;
    let units = width.div_ceil(8 * across) * height.div_ceil(8 * down);
    Some(factors.map(|(across, down)| units * across * down * 64 * 2).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_segment(jpeg: &mut Vec<u8>, marker: u8, content: &[u8]) {
        jpeg.extend([0xff, marker]);
        jpeg.extend((content.len() as u16 + 2).to_be_bytes());
        jpeg.extend(content);
    }

    #[test]
    fn scans_are_counted_up_to_the_end_marker() {
        let mut jpeg = vec![0xff, SOI];
        // A thumbnail within a segment has markers of its own.
        with_segment(&mut jpeg, 0xe0, &[0xff, SOI, 0xff, SOS, 0xff, EOI]);
        // Progressive, 30 x 20, luma twice as fine as both colours: 2 x 2 units of 2 x 2 + 1 + 1 blocks.
        with_segment(&mut jpeg, 0xc2, &[8, 0, 20, 0, 30, 3, 1, 0x22, 0, 2, 0x11, 1, 3, 0x11, 1]);
        for _ in 0..3 {
            with_segment(&mut jpeg, SOS, &[1, 1, 0, 0, 63, 0]);
            jpeg.extend([5, 0xff, 0, 7, 0xff, 0xd0, 9, 0xff]);
        }
        assert_eq!(JpegMarkers::read(&jpeg).length, None);
        jpeg.extend([0xff, EOI]);
        let length = jpeg.len();
        jpeg.extend([0xff, SOI, 0xff, SOS, 0, 2, 0xff, EOI]);
        let markers = JpegMarkers::read(&jpeg);
        assert_eq!((markers.scans, markers.length), (3, Some(length)));
        assert_eq!((markers.size, markers.components), ((30, 20), 3));
        assert_eq!(markers.coefficients, 2 * 2 * 6 * 64 * 2);
        assert_eq!(JpegMarkers::read(&[0xff, SOI]).length, None);
    }
}
