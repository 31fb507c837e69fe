//! Images in tar and zip archives, read in place from any seekable reader: nothing is unpacked to disk.

use std::io::{self, Read, Seek};

use anyhow::{Context as _, Result, bail};
use petnet::files::{LeftOut, entry_path, left_out};
use petnet::preprocess::{Limits, SNIFFED_BYTES};
use zip::ZipArchive;

use super::listing::{ImageBytes, ImageSelector, Load};
use super::source::refuse_large;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ArchiveKind {
    Tar,
    Zip,
}

impl ArchiveKind {
    /// The kind of archive by the extension of its name.
    pub(super) fn of(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        let kinds = [(".tar", Self::Tar), (".zip", Self::Zip)];
        kinds.into_iter().find(|(ending, _)| name.ends_with(ending)).map(|(_, kind)| kind)
    }
}

/// Lists the images of an archive in the archive's order, as `ARCHIVE/NAME INSIDE`.
pub(super) fn walk(
    kind: ArchiveKind,
    reader: impl Read + Seek,
    name: &str,
    selector: &mut ImageSelector,
) -> Result<()> {
    let outcome = match kind {
        ArchiveKind::Tar => tar(reader, name, selector),
        ArchiveKind::Zip => zip(reader, name, selector),
    };
    outcome.with_context(|| name.to_string())
}

fn tar(reader: impl Read + Seek, archive: &str, selector: &mut ImageSelector) -> Result<()> {
    let mut tar = tar::Archive::new(reader);
    // Entries of other shards are skipped by seeking.
    for entry in tar.entries_with_seek()? {
        let mut entry = entry?;
        let kind = entry.header().entry_type();
        if kind.is_dir() {
            continue;
        }
        let inside = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let Some(path) = entry_path(&inside) else {
            selector.leave_out(LeftOut::OutsidePath);
            continue;
        };
        if !(kind.is_file() || kind.is_contiguous()) {
            selector.leave_out(LeftOut::Special);
            continue;
        }
        let mut bytes = Vec::new();
        let mut head = None;
        let reason = left_out(&path, || {
            head = Some((&mut entry).take(SNIFFED_BYTES).read_to_end(&mut bytes));
            bytes.clone()
        });
        head.transpose()?;
        if let Some(reason) = reason {
            selector.leave_out(reason);
            continue;
        }
        selector.add(&format!("{archive}/{}", path.display()), || {
            let size = entry.size();
            if let Err(reason) = refuse_large(size) {
                return Ok(ready(Err(reason)));
            }
            bytes.reserve_exact((size as usize).saturating_sub(bytes.len()));
            entry.read_to_end(&mut bytes)?;
            if (bytes.len() as u64) < size {
                bail!("the archive ends within {inside}");
            }
            Ok(ready(Ok(bytes)))
        })?;
    }
    Ok(())
}

fn zip(reader: impl Read + Seek, archive: &str, selector: &mut ImageSelector) -> Result<()> {
    let mut zip = ZipArchive::new(reader)?;
    for index in 0..zip.len() {
        let Some(inside) = zip.name_for_index(index) else { continue };
        let inside = inside?.into_owned();
        if inside.ends_with(['/', '\\']) {
            continue;
        }
        let Some(path) = entry_path(&inside) else {
            selector.leave_out(LeftOut::OutsidePath);
            continue;
        };
        let head = || {
            let mut bytes = Vec::new();
            let read =
                zip.by_index(index).ok().map(|e| e.take(SNIFFED_BYTES).read_to_end(&mut bytes));
            // An entry that cannot be read counts as no image.
            if matches!(read, Some(Ok(_))) { bytes } else { Vec::new() }
        };
        match left_out(&path, head) {
            Some(reason) => selector.leave_out(reason),
            None => selector.add(&format!("{archive}/{}", path.display()), || {
                Ok(ready(unzip(&mut zip, index)?))
            })?,
        }
    }
    Ok(())
}

fn unzip(zip: &mut ZipArchive<impl Read + Seek>, index: usize) -> Result<ImageBytes> {
    let entry = match zip.by_index(index) {
        Ok(entry) => entry,
        Err(zip::result::ZipError::Io(error)) => return entry_error(error),
        Err(error) => return Ok(Err(error.to_string())),
    };
    if let Err(reason) = refuse_large(entry.size()) {
        return Ok(Err(reason));
    }
    let mut bytes = Vec::with_capacity(entry.size() as usize);
    // The declared size is untrusted: decompression stops at the limit.
    let read = entry.take(Limits::default().max_bytes + 1).read_to_end(&mut bytes);
    match read {
        Ok(_) => Ok(refuse_large(bytes.len() as u64).map(|()| bytes)),
        Err(error) => entry_error(error),
    }
}

/// Damaged data is an error of one image; an I/O error of the disk or the network stops the run.
fn entry_error(error: io::Error) -> Result<ImageBytes> {
    match error.kind() {
        io::ErrorKind::InvalidData
        | io::ErrorKind::InvalidInput
        | io::ErrorKind::Unsupported
        | io::ErrorKind::UnexpectedEof => Ok(Err(error.to_string())),
        _ => Err(error.into()),
    }
}

fn ready(image: ImageBytes) -> Load {
    Box::new(|| Ok(image))
}
