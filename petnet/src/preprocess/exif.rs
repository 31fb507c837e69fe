//! The orientation in EXIF metadata. Source: Exif 2.32, section 4.6; TIFF 6.0, section 2.

use image::metadata::Orientation;

const ORIENTATION: u16 = 0x0112;

/// The rotation and mirroring that make an image upright. Some programs write the value as a byte or in four bytes, not in
/// the two bytes of the standard.
pub(super) fn orientation(exif: &[u8]) -> Option<Orientation> {
    let big = match exif.get(..4)? {
        b"MM\0*" => true,
        b"II*\0" => false,
        _ => return None,
    };
    let two = |at: usize| {
        let bytes = *exif.get(at..)?.first_chunk()?;
        Some(if big { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    };
    let four = |at: usize| {
        let bytes = *exif.get(at..)?.first_chunk()?;
        Some(if big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    };
    let directory = four(4)? as usize;
    let entries = usize::from(two(directory)?);
    let entry = (0..entries)
        .map_while(|number| directory.checked_add(2 + number * 12))
        .find(|entry| two(*entry) == Some(ORIENTATION))?;
    let value = match two(entry + 2)? {
        1 => u32::from(*exif.get(entry + 8)?),
        3 => u32::from(two(entry + 8)?),
        4 => four(entry + 8)?,
        _ => return None,
    };
    Orientation::from_exif(u8::try_from(value).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiff(big: bool, kind: u16, value: &[u8; 4]) -> Vec<u8> {
        let two = |number: u16| if big { number.to_be_bytes() } else { number.to_le_bytes() };
        let four = |number: u32| if big { number.to_be_bytes() } else { number.to_le_bytes() };
        let order: &[u8] = if big { b"MM" } else { b"II" };
        // The entry of another tag comes first.
        let other = [&two(0x010f)[..], &two(2), &four(1), b"x\0\0\0"].concat();
        let entry = [&two(ORIENTATION)[..], &two(kind), &four(1), value].concat();
        [order, &two(42), &four(8), &two(2), &other, &entry, &four(0)].concat()
    }

    #[test]
    fn numbers_of_one_two_and_four_bytes_are_read_in_both_orders() {
        let turned = Some(Orientation::Rotate90);
        assert_eq!(orientation(&tiff(true, 3, &[0, 6, 0, 0])), turned);
        assert_eq!(orientation(&tiff(false, 3, &[6, 0, 0, 0])), turned);
        assert_eq!(orientation(&tiff(true, 4, &[0, 0, 0, 6])), turned);
        assert_eq!(orientation(&tiff(false, 4, &[6, 0, 0, 0])), turned);
        assert_eq!(orientation(&tiff(false, 1, &[6, 0, 0, 0])), turned);
        let whole = tiff(false, 4, &[6, 0, 0, 0]);
        for length in 0..whole.len() - 4 {
            // Nothing is read beyond the end.
            let found = orientation(&whole[..length]);
            assert!(found.is_none() || found == turned, "{length}");
        }
        assert_eq!(orientation(&tiff(false, 3, &[99, 0, 0, 0])), None);
        assert_eq!(orientation(b"II*\0\xff\xff\xff\xff"), None);
    }
}
