//! Photos in tar and zip archives, read in place from anything that can be read and sought: nothing is unpacked to disk.

use std::io::{self, Read, Seek};

use anyhow::{Context as _, Result, bail};
use petnet::preprocess::Limits;
use zip::ZipArchive;

use super::listing::{Listing, Load, Photo};
use super::source::{is_picture, refuse_large};

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
        let inside = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let kind = entry.header().entry_type();
        if !(kind.is_file() || kind.is_contiguous()) || !is_picture(&inside) {
            continue;
        }
        let path = format!("{archive}/{}", inside.trim_start_matches("./"));
        listing.offer(&path, || {
            let size = entry.size();
            if let Err(reason) = refuse_large(size) {
                return Ok(ready(Err(reason)));
            }
            let mut bytes = Vec::with_capacity(size as usize);
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
        if is_picture(&inside) {
            listing.offer(&format!("{archive}/{inside}"), || Ok(ready(unzip(&mut zip, index)?)))?;
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
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::UnexpectedEof => {
            Ok(Err(error.to_string()))
        }
        _ => Err(error.into()),
    }
}

fn ready(photo: Photo) -> Load {
    Box::new(|| Ok(photo))
}
