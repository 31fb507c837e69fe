//! Frame sizes in a WebP file, as the decoder compares a frame's size with the canvas only after decoding it. Source: the
//! WebP container specification and RFC 6386, section 9.1.

/// Largest number of pixels of a lossy frame in the file, and the size of all lossless data in bytes.
pub(super) fn frames(bytes: &[u8]) -> (u64, u64) {
    let (mut pixels, mut lossless) = (0, 0);
    let mut rest = bytes.get(12..).unwrap_or_default();
    while let Some((name, content, behind)) = next_chunk(rest) {
        rest = match name {
            // A frame of an animation has a header of 16 bytes and then chunks.
            b"ANMF" => rest.get(8 + 16..).unwrap_or_default(),
            _ => behind,
        };
        match name {
            b"VP8 " => pixels = pixels.max(frame_pixels(content)),
            b"VP8L" | b"ALPH" => lossless += content.len() as u64,
            _ => (),
        }
    }
    (pixels, lossless)
}

/// The first chunk: its name, as much of its content as there is, and the bytes behind it.
fn next_chunk(bytes: &[u8]) -> Option<(&[u8; 4], &[u8], &[u8])> {
    let length = u64::from(u32::from_le_bytes(*bytes.get(4..)?.first_chunk()?));
    // The end may be beyond what a 32-bit `usize` can hold.
    let clamped = |end: u64| end.min(bytes.len() as u64) as usize;
    let content = &bytes[8..clamped(8 + length)];
    // Chunks are padded to an even length.
    let behind = &bytes[clamped(8 + length + length % 2)..];
    Some((bytes.first_chunk()?, content, behind))
}

fn frame_pixels(frame: &[u8]) -> u64 {
    // Three bytes of tag and a start code of three, then 14 bits each of width and height.
    let Some([a, b, c, d]) = frame.get(6..).and_then(|sizes| sizes.first_chunk()) else { return 0 };
    let side = |low: u8, high: u8| u64::from(u16::from_le_bytes([low, high]) & 0x3fff);
    side(*a, *b) * side(*c, *d)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(name: &[u8], content: &[u8]) -> Vec<u8> {
        [name, &(content.len() as u32).to_le_bytes(), content, &[0][..content.len() % 2]].concat()
    }

    #[test]
    fn frames_are_found_within_animations_too() {
        let lossy = [0, 0, 0, 0x9d, 1, 0x2a, 0x10, 0x40, 0x03, 0];
        let frame = [&[0; 16][..], &chunk(b"ALPH", &[0; 7]), &chunk(b"VP8 ", &lossy)].concat();
        let file = [b"RIFF\0\0\0\0WEBP".to_vec(), chunk(b"VP8X", &[0; 10]), chunk(b"ANMF", &frame)];
        let file = [file.concat(), chunk(b"VP8L", &[0; 5])].concat();
        assert_eq!(frames(&file), (16 * 3, 12));
        for length in 0..file.len() {
            frames(&file[..length]);
        }
        assert_eq!(frames(&[&file[..12], b"VP8L\xff\xff\xff\xff", &[0; 9]].concat()), (0, 9));
    }
}
