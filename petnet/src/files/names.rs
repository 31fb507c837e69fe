//! Names of files and of what they are kept in.

use std::path::{Component, Path, PathBuf};

use unicode_normalization::UnicodeNormalization as _;

use super::LeftOut;

/// Endings of images: most are read, for the others there is advice.
const ENDINGS: [&str; 19] = [
    "jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "heic", "heif", "avif", "tif",
    "tiff", "jxl", "jp2", "psd", "cr2", "cr3", "dng",
];

/// Folders and files of operating systems and storage devices, in lower case.
const SYSTEM: [&str; 9] = [
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

/// Judgement of a file's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    /// It ends like an image's.
    Image,
    /// It says nothing: the first bytes must tell ([`recognise`](crate::preprocess::recognise)).
    Open,
    /// The file is left out.
    LeftOut(LeftOut),
}

/// Judges a path relative to what was asked for: each of its parts may leave it out.
///
/// ```
/// use std::path::Path;
/// use petnet::files::{LeftOut, Name, judge};
///
/// assert_eq!(judge(Path::new("cats/tom.JPG")), Name::Image);
/// assert_eq!(judge(Path::new("cats/tom")), Name::Open);
/// assert_eq!(judge(Path::new("@eaDir/tom.jpg")), Name::LeftOut(LeftOut::System));
/// ```
pub fn judge(path: &Path) -> Name {
    for part in path.components() {
        if let Some(reason) = part_left_out(&part.as_os_str().to_string_lossy()) {
            return Name::LeftOut(reason);
        }
    }
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
    match ending {
        Some(ending) if ENDINGS.contains(&ending.as_str()) => Name::Image,
        _ => Name::Open,
    }
}

/// Why a file or folder of this name is left out.
pub(super) fn part_left_out(name: &str) -> Option<LeftOut> {
    match name {
        "." | ".." => None,
        _ if SYSTEM.contains(&name.to_lowercase().as_str()) => Some(LeftOut::System),
        _ if name.starts_with('.') => Some(LeftOut::Hidden),
        _ => None,
    }
}

/// The path that an archive's entry stands for: `./` and roots are taken off, and a backslash parts names, as Windows'
/// programs write them. `None` for one that leads out of the archive, or is empty.
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
        // A drive's letter, as in `C:`, leads elsewhere on Windows.
        if part == ".." || part.contains('\0') || matches!(part.as_bytes(), [_, b':']) {
            return None;
        }
        path.push(part);
    }
    (path.components().next().is_some()).then_some(path)
}

/// The path, if it stays within its folder whatever links do: relative, and never up.
pub(crate) fn contained(path: &str) -> Option<&Path> {
    let path = Path::new(path);
    let inside = path.components().all(|part| matches!(part, Component::Normal(_)));
    (inside && path.components().next().is_some()).then_some(path)
}

/// The part that spellings of a class's name have in common, without case, the singular, and the form of Unicode (NFC).
pub(crate) fn key(name: &str) -> String {
    let name: String = name.trim().nfc().collect::<String>().to_lowercase();
    let plural = name.len() > 3 && name.ends_with('s') && !name.ends_with("ss");
    if plural { name[..name.len() - 1].to_string() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_a_path_is_judged() {
        let judged = |path: &str| judge(Path::new(path));
        assert_eq!(judged("a/b.jpeg"), Name::Image);
        assert_eq!(judged("a/b.HEIC"), Name::Image);
        for open in ["a/b", "a.jpg/readme", "labels.csv"] {
            assert_eq!(judged(open), Name::Open, "{open}");
        }
        for hidden in [".git/a.jpg", "cat/._tom.jpg"] {
            assert_eq!(judged(hidden), Name::LeftOut(LeftOut::Hidden), "{hidden}");
        }
        for system in ["cat/Thumbs.db", "$RECYCLE.BIN/1.jpg", "lost+found/x"] {
            assert_eq!(judged(system), Name::LeftOut(LeftOut::System), "{system}");
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
        assert_eq!(key(" Cats "), key("cat"));
        assert_eq!(key("caf\u{e9}"), key("cafe\u{301}"));
        assert_ne!(key("glass"), key("glas"));
    }
}
