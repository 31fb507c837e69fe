//! Selection of the listed images that a run classifies: those of its shard that no earlier run has finished.

use std::str::FromStr;

use anyhow::{Result, anyhow};
use petnet::files::{LeftOut, LeftOutCounts};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Bytes of an image, or the reason why they cannot be read.
pub(super) type ImageBytes = Result<Vec<u8>, String>;
/// Reads an image; an error stops the whole run.
pub(super) type Load = Box<dyn FnOnce() -> Result<ImageBytes> + Send>;

/// An image to read and classify.
pub(super) struct Item {
    pub(super) path: String,
    pub(super) load: Load,
}

/// The `index`-th of `count` shares of the images, by the SHA-256 of their paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shard {
    pub(super) index: u64,
    pub(super) count: u64,
}

impl Shard {
    fn contains(self, path: &str) -> bool {
        let [a, b, c, d, e, f, g, h, ..] = <[u8; 32]>::from(Sha256::digest(path));
        u64::from_be_bytes([a, b, c, d, e, f, g, h]) % self.count == self.index
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed =
            text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match parsed {
            Some((index, count)) if index < count => Ok(Self { index, count }),
            _ => Err("must be I/N with I from 0 to N - 1, such as 0/4".into()),
        }
    }
}

/// Chained SHA-256 of paths in their order. A continued run compares it, to verify that the listing starts with the
/// images that are done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PathDigest(String);

impl PathDigest {
    pub(super) fn add(&mut self, path: &str) {
        self.0 = petnet::disk::sha256(format!("{}\n{path}", self.0).as_bytes());
    }
}

/// Images of a shard that earlier runs finished: their number, and the digest of their paths.
#[derive(Debug, Clone, Default)]
pub(super) struct Finished {
    pub(super) images: u64,
    pub(super) paths: PathDigest,
}

/// Number of images listed, over all shards, and of files left out.
#[derive(Debug, Clone, Default)]
pub(super) struct Listed {
    pub(super) images: u64,
    pub(super) left_out: LeftOutCounts,
}

/// Gets every image that a source lists, and sends those that this run classifies.
pub(super) struct ImageSelector<'a> {
    shard: Shard,
    done: Finished,
    /// Number of finished images that were listed so far.
    skipped: u64,
    paths: PathDigest,
    found: Listed,
    send: &'a mut dyn FnMut(Item) -> Result<()>,
}

impl<'a> ImageSelector<'a> {
    pub(super) fn new(
        shard: Shard,
        done: Finished,
        send: &'a mut dyn FnMut(Item) -> Result<()>,
    ) -> Self {
        let (paths, found) = (PathDigest::default(), Listed::default());
        Self { shard, done, skipped: 0, paths, found, send }
    }

    /// Counts a listed image, and sends it if the run classifies it. `load` is called only then, and may read it
    /// immediately: a tar archive cannot be read again later.
    pub(super) fn add(&mut self, path: &str, load: impl FnOnce() -> Result<Load>) -> Result<()> {
        self.found.images += 1;
        if !self.shard.contains(path) {
            return Ok(());
        }
        if self.skipped < self.done.images {
            self.skipped += 1;
            self.paths.add(path);
            let all = self.skipped == self.done.images;
            return if all && self.paths != self.done.paths { Err(changed()) } else { Ok(()) };
        }
        (self.send)(Item { path: path.into(), load: load()? })
    }

    /// Counts a file that is no image.
    pub(super) fn leave_out(&mut self, reason: LeftOut) {
        self.found.left_out.add(reason);
    }

    /// Ends the listing.
    /// Errors: when images that an earlier run finished are missing.
    pub(super) fn end(self) -> Result<Listed> {
        if self.skipped < self.done.images {
            return Err(changed());
        }
        Ok(self.found)
    }
}

/// The error of a listing that has changed: continuing would leave images out or classify some twice.
fn changed() -> anyhow::Error {
    anyhow!(
        "the images are not those of the run to continue (some were added, removed or renamed): use \
         another --out"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selected(paths: &[&str], shard: &str, done: Finished) -> Result<Vec<String>> {
        let mut selected = Vec::new();
        let mut send = |item: Item| {
            selected.push(item.path);
            Ok(())
        };
        let mut selector = ImageSelector::new(shard.parse().unwrap(), done, &mut send);
        for path in paths {
            selector.add(path, || Ok(Box::new(|| Ok(Ok(Vec::new())))))?;
        }
        selector.end()?;
        Ok(selected)
    }

    #[test]
    fn shards_are_written_as_i_of_n() {
        assert_eq!("3/4".parse(), Ok(Shard { index: 3, count: 4 }));
        for text in ["4/4", "0/0", "1", "-1/4", "a/b", ""] {
            assert!(text.parse::<Shard>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_shard_of_a_path_is_the_same_in_every_release() {
        let shard = |path| (0..4).find(|i| Shard { index: *i, count: 4 }.contains(path)).unwrap();
        assert_eq!(["a.jpg", "b.jpg", "s3://photos/inbox/1.jpg"].map(shard), [2, 2, 1]);
    }

    #[test]
    fn finished_images_are_skipped_only_if_the_listing_starts_with_them() {
        let mut paths = PathDigest::default();
        paths.add("a");
        paths.add("b");
        let done = Finished { images: 2, paths };
        assert_eq!(selected(&["a", "b", "c"], "0/1", done.clone()).unwrap(), ["c"]);
        for other in [&["b", "a", "c"][..], &["a", "aa", "b", "c"], &["a"], &[]] {
            let error = selected(other, "0/1", done.clone()).unwrap_err();
            assert!(error.to_string().contains("use another --out"), "{error}");
        }
    }
}
