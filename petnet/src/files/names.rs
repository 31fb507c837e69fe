//! Classification of file and folder names.

use std::path::{Component, Path, PathBuf};

use unicode_normalization::UnicodeNormalization as _;

use super::LeftOut;
use crate::preprocess::{FileKind, recognise};

/// Extensions of image files, those of unsupported formats too: for these an error has advice on converting them.
const IMAGE_EXTENSIONS: [&str; 19] = [
    "jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "heic", "heif", "avif", "tif",
    "tiff", "jxl", "jp2", "psd", "cr2", "cr3", "dng",
];

/// Folders and files of operating systems and storage devices, in lower case.
const SYSTEM_NAMES: [&str; 9] = [
    "@eadir",
    "#recycle",
    "#snapshot",
    "lost+found",
    "__macosx",
    "$recycle.bin",
    "system volume information",
    "thumbs.db",
    "desktop.ini",
];

/// The reason why a file is left out, by its path relative to the folder or archive that is read. Any part of the path may
/// leave it out. Where its extension is not an image's, its first [`SNIFFED_BYTES`](crate::preprocess::SNIFFED_BYTES) bytes decide, which `head`
/// reads. `None` for an image.
///
/// ```
/// use std::path::Path;
/// use petnet::files::{LeftOut, left_out};
///
/// assert_eq!(left_out(Path::new("cats/tom.JPG"), Vec::new), None);
/// assert_eq!(left_out(Path::new("cats/tom"), || b"GIF89a".to_vec()), None);
/// assert_eq!(left_out(Path::new("cats/tom"), Vec::new), Some(LeftOut::NoImage));
/// assert_eq!(left_out(Path::new("@eaDir/tom.jpg"), Vec::new), Some(LeftOut::System));
/// ```
pub fn left_out(path: &Path, head: impl FnOnce() -> Vec<u8>) -> Option<LeftOut> {
    if let Some(reason) = path_left_out(path) {
        return Some(reason);
    }
    let extension = path.extension().map(|text| text.to_string_lossy().to_ascii_lowercase());
    if extension.is_some_and(|extension| IMAGE_EXTENSIONS.contains(&extension.as_str())) {
        return None;
    }
    (recognise(&head()) == FileKind::NoImage).then_some(LeftOut::NoImage)
}

/// The reason why a part of this path leaves a file or folder out, if one does.
pub(super) fn path_left_out(path: &Path) -> Option<LeftOut> {
    path.components().find_map(|part| part_left_out(&part.as_os_str().to_string_lossy()))
}

/// The reason why a file or folder of this name is left out, if it is.
pub(super) fn part_left_out(name: &str) -> Option<LeftOut> {
    match name {
        "." | ".." => None,
        _ if SYSTEM_NAMES.contains(&name.to_lowercase().as_str()) => Some(LeftOut::System),
        _ if name.starts_with('.') => Some(LeftOut::Hidden),
        _ => None,
    }
}

/// The path of an archive's entry, without `./` and roots. A backslash separates names too, as some programs on Windows
/// write it. `None` for a path that is empty or outside of the archive.
///
/// ```
/// use std::path::Path;
/// use petnet::files::entry_path;
///
/// assert_eq!(entry_path(r".\cat\1.jpg").as_deref(), Some(Path::new("cat/1.jpg")));
/// assert_eq!(entry_path("cat/../../1.jpg"), None);
/// ```
pub fn entry_path(name: &str) -> Option<PathBuf> {
    let name = name.replace('\\', "/");
    let mut path = PathBuf::new();
    for part in name.split('/').filter(|part| !part.is_empty() && *part != ".") {
        // A drive letter, as in `C:`, is an absolute path on Windows.
        if part == ".." || part.contains('\0') || matches!(part.as_bytes(), [_, b':']) {
            return None;
        }
        path.push(part);
    }
    (path.components().next().is_some()).then_some(path)
}

/// The path, if it is relative and without `..`, so that it stays within its folder.
pub(crate) fn contained(path: &str) -> Option<&Path> {
    let path = Path::new(path);
    let inside = path.components().all(|part| matches!(part, Component::Normal(_)));
    (inside && path.components().next().is_some()).then_some(path)
}

/// Normal form of a class name: lower case, singular, and composed Unicode (NFC). Spellings with the same key are one class.
pub(crate) fn class_key(name: &str) -> String {
    let name: String = name.trim().nfc().collect::<String>().to_lowercase();
    let plural = name.len() > 3 && name.ends_with('s') && !name.ends_with("ss");
    if plural { name[..name.len() - 1].to_string() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_part_of_a_path_may_leave_it_out() {
        let by_name = |path: &str| left_out(Path::new(path), Vec::new);
        assert_eq!(by_name("a/b.jpeg"), None);
        assert_eq!(by_name("a/b.HEIC"), None);
        for unknown in ["a/b", "a.jpg/readme", "labels.csv"] {
            assert_eq!(by_name(unknown), Some(LeftOut::NoImage), "{unknown}");
            let jpeg = || b"\xff\xd8\xff\xe0".to_vec();
            assert_eq!(left_out(Path::new(unknown), jpeg), None, "{unknown}");
        }
        for hidden in [".git/a.jpg", "cat/._tom.jpg"] {
            assert_eq!(by_name(hidden), Some(LeftOut::Hidden), "{hidden}");
        }
        for system in ["cat/Thumbs.db", "$RECYCLE.BIN/1.jpg", "lost+found/x"] {
            assert_eq!(by_name(system), Some(LeftOut::System), "{system}");
        }
    }

    #[test]
    fn entries_stay_inside_and_prepared_paths_too() {
        for (name, path) in
            [("./a/b.jpg", "a/b.jpg"), ("/a//b.jpg", "a/b.jpg"), (r"a\b.jpg", "a/b.jpg")]
        {
            assert_eq!(entry_path(name).as_deref(), Some(Path::new(path)));
        }
        for name in ["../a.jpg", "a/../../b.jpg", r"..\a.jpg", r"C:\a.jpg", "", "./", "a\0b"] {
            assert_eq!(entry_path(name), None, "{name}");
        }
        assert!(contained("train/cat/1.jpg").is_some());
        for path in ["../1.jpg", "/etc/passwd", "a/../../b", ""] {
            assert!(contained(path).is_none(), "{path}");
        }
    }

    #[test]
    fn spellings_of_a_class_are_one() {
        assert_eq!(class_key(" Cats "), class_key("cat"));
        assert_eq!(class_key("caf\u{e9}"), class_key("cafe\u{301}"));
        assert_ne!(class_key("glass"), class_key("glas"));
    }
}
