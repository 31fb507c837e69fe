//! Images that ask for much with few bytes.
#![allow(dead_code, reason = "each test file takes what it needs")]

use std::io::Write as _;

use flate2::Compression;
use flate2::write::ZlibEncoder;

/// Storage of a PNG's pixels: color type, bit depth, bytes a pixel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PngKind(pub(crate) u8, pub(crate) u8, pub(crate) u64);

/// Grey, RGB, RGBA; RGB and RGBA of 16 bits a channel.
pub(crate) const PNG_KINDS: [PngKind; 6] = [
    PngKind(0, 8, 1),
    PngKind(4, 8, 2),
    PngKind(2, 8, 3),
    PngKind(6, 8, 4),
    PngKind(2, 16, 6),
    PngKind(6, 16, 8),
];

/// A PNG whose pixels are all zero, with further chunks before them.
pub(crate) fn png(
    width: u32,
    height: u32,
    kind: PngKind,
    extra: &[(&[u8; 4], Vec<u8>)],
) -> Vec<u8> {
    let PngKind(color, depth, bytes) = kind;
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    let header =
        [&width.to_be_bytes()[..], &height.to_be_bytes(), &[depth, color, 0, 0, 0]].concat();
    png_chunk(&mut file, b"IHDR", &header);
    extra.iter().for_each(|(name, content)| png_chunk(&mut file, name, content));
    let row = 1 + u64::from(width) * bytes;
    png_chunk(&mut file, b"IDAT", &zeros(row * u64::from(height)));
    png_chunk(&mut file, b"IEND", b"");
    file
}

/// A color profile of so many bytes.
pub(crate) fn profile(bytes: u64) -> (&'static [u8; 4], Vec<u8>) {
    (b"iCCP", [b"x\0\0".to_vec(), zeros(bytes)].concat())
}

/// A compressed text of so many bytes.
pub(crate) fn text(bytes: u64) -> (&'static [u8; 4], Vec<u8>) {
    (b"zTXt", [b"x\0\0".to_vec(), zeros(bytes)].concat())
}

fn png_chunk(file: &mut Vec<u8>, name: &[u8; 4], content: &[u8]) {
    file.extend((content.len() as u32).to_be_bytes());
    let start = file.len();
    file.extend(name);
    file.extend(content);
    let mut crc = flate2::Crc::new();
    crc.update(&file[start..]);
    file.extend(crc.sum().to_be_bytes());
}

fn zeros(bytes: u64) -> Vec<u8> {
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::best());
    let block = [0; 1 << 16];
    let mut left = bytes;
    while left > 0 {
        let part = left.min(block.len() as u64);
        zlib.write_all(&block[..part as usize]).unwrap();
        left -= part;
    }
    zlib.finish().unwrap()
}

/// A progressive JPEG of so many scans, each of which passes over all of the image and says that it is empty.
pub(crate) fn jpeg(width: u16, height: u16, scans: usize) -> Vec<u8> {
    let mut file = vec![0xff, 0xd8];
    jpeg_segment(&mut file, 0xdb, &[&[0][..], &[1; 64]].concat());
    let [high, low] = height.to_be_bytes();
    let [wide, narrow] = width.to_be_bytes();
    let frame = [8, high, low, wide, narrow, 3, 1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0];
    jpeg_segment(&mut file, 0xc2, &frame);
    // One code of one bit each: a difference of zero, and "the next 2^14 to 2^15 - 1 blocks are empty".
    for (class, symbol) in [(0x00, 0x00), (0x10, 0xe0)] {
        let counts = [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        jpeg_segment(&mut file, 0xc4, &[&[class][..], &counts, &[symbol]].concat());
    }
    let blocks = usize::from(width).div_ceil(8) * usize::from(height).div_ceil(8);
    let runs = blocks.div_ceil((1 << 15) - 1);
    for scan in 0..scans {
        let component = [1, 2, 3][scan % 3];
        jpeg_segment(&mut file, 0xda, &[1, component, 0, 1, 63, 0]);
        let bits = std::iter::repeat_n([false].iter().chain(&[true; 14]), runs).flatten().copied();
        file.extend(packed(bits));
    }
    file.extend([0xff, 0xd9]);
    file
}

fn jpeg_segment(file: &mut Vec<u8>, marker: u8, content: &[u8]) {
    file.extend([0xff, marker]);
    file.extend((content.len() as u16 + 2).to_be_bytes());
    file.extend(content);
}

/// Bits of a scan, padded with ones; a zero follows each 0xFF.
fn packed(bits: impl Iterator<Item = bool>) -> Vec<u8> {
    let bits: Vec<bool> = bits.collect();
    let bytes = bits.chunks(8).map(|byte| {
        (0..8).fold(0, |all, bit| all << 1 | u8::from(byte.get(bit).copied().unwrap_or(true)))
    });
    bytes.flat_map(|byte| if byte == 0xff { vec![0xff, 0] } else { vec![byte] }).collect()
}

/// A GIF with a frame of one color, and its canvas.
pub(crate) fn gif(canvas: [u16; 2], frame: [u16; 2]) -> Vec<u8> {
    let mut file = b"GIF89a".to_vec();
    canvas.iter().for_each(|side| file.extend(side.to_le_bytes()));
    file.extend([0x80, 0, 0, 9, 9, 9, 200, 200, 200, b',', 0, 0, 0, 0]);
    frame.iter().for_each(|side| file.extend(side.to_le_bytes()));
    file.extend([0, 2]);
    let pixels = usize::from(frame[0]) * usize::from(frame[1]);
    for block in packed_low(lzw(pixels)).chunks(255) {
        file.push(block.len() as u8);
        file.extend(block);
    }
    file.extend([0, b';']);
    file
}

/// So many zeros in codes of GIF's LZW as (code, width in bits): each stands for one pixel more than the last, until
/// the table is full.
fn lzw(pixels: usize) -> Vec<(u32, u32)> {
    const CLEAR: u32 = 4;
    const END: u32 = 5;
    let (mut codes, mut left, mut width) = (vec![(CLEAR, 3)], pixels, 3);
    let mut next = 6_u32;
    let mut previous: Option<usize> = None;
    while left > 0 {
        // A run of n zeros has the code 4 + n; the next new one is one pixel longer than the last run.
        let run = previous.map_or(1, |run| run + 1).min(left);
        codes.push((if run == 1 { 0 } else { run as u32 + 4 }, width));
        left -= run;
        if previous.is_some() {
            next += 1;
        }
        previous = Some(run);
        if next == 1 << width && width < 12 {
            width += 1;
        }
        if next == 4095 {
            codes.push((CLEAR, width));
            (next, width, previous) = (6, 3, None);
        }
    }
    codes.push((END, width));
    codes
}

/// Codes in bytes, low bits first.
fn packed_low(codes: Vec<(u32, u32)>) -> Vec<u8> {
    let bits: Vec<bool> = codes
        .iter()
        .flat_map(|(code, width)| (0..*width).map(move |bit| code >> bit & 1 == 1))
        .collect();
    bits.chunks(8)
        .map(|byte| byte.iter().rev().fold(0, |all, bit| all << 1 | u8::from(*bit)))
        .collect()
}

/// A lossy WebP frame of one size on a canvas of another.
pub(crate) fn webp(canvas: [u32; 2], frame: [u16; 2]) -> Vec<u8> {
    let mut extended = vec![0; 4];
    canvas.iter().for_each(|side| extended.extend(&(side - 1).to_le_bytes()[..3]));
    // A key frame whose first partition holds nothing but zeros.
    let mut lossy = vec![0x10, 0x02, 0, 0x9d, 1, 0x2a];
    frame.iter().for_each(|side| lossy.extend(side.to_le_bytes()));
    lossy.extend([0; 64]);
    let chunks = [riff_chunk(b"VP8X", &extended), riff_chunk(b"VP8 ", &lossy)].concat();
    [b"RIFF", &(chunks.len() as u32 + 4).to_le_bytes()[..], b"WEBP", &chunks].concat()
}

fn riff_chunk(name: &[u8; 4], content: &[u8]) -> Vec<u8> {
    [name, &(content.len() as u32).to_le_bytes()[..], content].concat()
}
