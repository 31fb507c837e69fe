//! Photos in tar and zip archives, read in place from anything that can be read and sought: nothing is unpacked to disk.

use std::io::{self, Read, Seek};

use anyhow::{Context as _, Result, bail};
use petnet::files::{LeftOut, entry_path};
use petnet::preprocess::{HEAD, Limits};
use zip::ZipArchive;

use super::listing::{Listing, Load, Photo};
use super::source::{left_out, refuse_large};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Tar,
    Zip,
}

impl Kind {
    /// By the name's ending.
    pub(super) fn of(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        match () {
            () if name.ends_with(".tar") => Some(Self::Tar),
            () if name.ends_with(".zip") => Some(Self::Zip),
            () => None,
        }
    }
}

/// Lists the photos of an archive in its own order, as `NAME/NAME INSIDE`.
pub(super) fn walk(
    kind: Kind,
    reader: impl Read + Seek,
    name: &str,
    listing: &mut Listing,
) -> Result<()> {
    let outcome = match kind {
        Kind::Tar => tar(reader, name, listing),
        Kind::Zip => zip(reader, name, listing),
    };
    outcome.with_context(|| name.to_string())
}

fn tar(reader: impl Read + Seek, archive: &str, listing: &mut Listing) -> Result<()> {
    let mut tar = tar::Archive::new(reader);
    // Photos of other shards are sought past.
    for entry in tar.entries_with_seek()? {
        let mut entry = entry?;
        let kind = entry.header().entry_type();
        if kind.is_dir() {
            continue;
        }
        let inside = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let Some(path) = entry_path(&inside) else {
            listing.leave_out(LeftOut::OutsidePath);
            continue;
        };
        if !(kind.is_file() || kind.is_contiguous()) {
            listing.leave_out(LeftOut::Special);
            continue;
        }
        let mut bytes = Vec::new();
        let mut head = None;
        let reason = left_out(&path, || {
            head = Some((&mut entry).take(HEAD as u64).read_to_end(&mut bytes));
            bytes.clone()
        });
        head.transpose()?;
        if let Some(reason) = reason {
            listing.leave_out(reason);
            continue;
        }
        listing.offer(&format!("{archive}/{}", path.display()), || {
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

fn zip(reader: impl Read + Seek, archive: &str, listing: &mut Listing) -> Result<()> {
    let mut zip = ZipArchive::new(reader)?;
    for index in 0..zip.len() {
        let Some(inside) = zip.name_for_index(index) else { continue };
        let inside = inside?.into_owned();
        if inside.ends_with(['/', '\\']) {
            continue;
        }
        let Some(path) = entry_path(&inside) else {
            listing.leave_out(LeftOut::OutsidePath);
            continue;
        };
        let head = || {
            let mut bytes = Vec::new();
            let read =
                zip.by_index(index).ok().map(|e| e.take(HEAD as u64).read_to_end(&mut bytes));
            // An entry that cannot be read is no image for all that is known.
            if matches!(read, Some(Ok(_))) { bytes } else { Vec::new() }
        };
        match left_out(&path, head) {
            Some(reason) => listing.leave_out(reason),
            None => listing.offer(&format!("{archive}/{}", path.display()), || {
                Ok(ready(unzip(&mut zip, index)?))
            })?,
        }
    }
    Ok(())
}

fn unzip(zip: &mut ZipArchive<impl Read + Seek>, index: usize) -> Result<Photo> {
    let entry = match zip.by_index(index) {
        Ok(entry) => entry,
        Err(zip::result::ZipError::Io(error)) => return judged(error),
        Err(error) => return Ok(Err(error.to_string())),
    };
    if let Err(reason) = refuse_large(entry.size()) {
        return Ok(Err(reason));
    }
    let mut bytes = Vec::with_capacity(entry.size() as usize);
    // The size is a claim; what comes out is trusted no further than the limit.
    let read = entry.take(Limits::default().max_bytes + 1).read_to_end(&mut bytes);
    match read {
        Ok(_) => Ok(refuse_large(bytes.len() as u64).map(|()| bytes)),
        Err(error) => judged(error),
    }
}

/// Damage within one photo is that photo's; what the disk or the network does stops the run.
fn judged(error: io::Error) -> Result<Photo> {
    match error.kind() {
        io::ErrorKind::InvalidData
        | io::ErrorKind::InvalidInput
        | io::ErrorKind::Unsupported
        | io::ErrorKind::UnexpectedEof => Ok(Err(error.to_string())),
        _ => Err(error.into()),
    }
}

fn ready(photo: Photo) -> Load {
    Box::new(|| Ok(photo))
}
