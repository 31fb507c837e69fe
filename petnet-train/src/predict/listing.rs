//! Which of the listed photos this run takes: its shard's, less those that an earlier run finished.

use std::str::FromStr;

use anyhow::{Result, anyhow};
use petnet::files::{Counts, LeftOut};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// A photo's bytes, or why it has none.
pub(super) type Photo = Result<Vec<u8>, String>;
/// Reads a photo; fails where the whole run should stop.
pub(super) type Load = Box<dyn FnOnce() -> Result<Photo> + Send>;

/// A photo that is to be read.
pub(super) struct Item {
    pub(super) path: String,
    pub(super) load: Load,
}

/// The `index`-th of `count` shares of the photos.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shard {
    pub(super) index: u64,
    pub(super) count: u64,
}

impl Shard {
    fn has(self, path: &str) -> bool {
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

/// A digest of paths in their order: what was scored is recognised by it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Trail(String);

impl Trail {
    pub(super) fn step(&mut self, path: &str) {
        self.0 = petnet::sha256(format!("{}\n{path}", self.0).as_bytes());
    }
}

/// What earlier runs of a shard finished: so many photos, with this trail.
#[derive(Debug, Clone, Default)]
pub(super) struct Done {
    pub(super) photos: u64,
    pub(super) trail: Trail,
}

/// Photos that were listed, of all shards, and what else there was.
#[derive(Debug, Clone, Default)]
pub(super) struct Found {
    pub(super) photos: u64,
    pub(super) left_out: Counts,
}

/// Takes every photo that a source lists and passes on those that are to be scored.
pub(super) struct Listing<'a> {
    shard: Shard,
    done: Done,
    seen: u64,
    trail: Trail,
    found: Found,
    send: &'a mut dyn FnMut(Item) -> Result<()>,
}

impl<'a> Listing<'a> {
    pub(super) fn new(
        shard: Shard,
        done: Done,
        send: &'a mut dyn FnMut(Item) -> Result<()>,
    ) -> Self {
        Self { shard, done, seen: 0, trail: Trail::default(), found: Found::default(), send }
    }

    /// `load` is called only for a photo that is taken; it may read at once where a source goes forward only.
    pub(super) fn offer(&mut self, path: &str, load: impl FnOnce() -> Result<Load>) -> Result<()> {
        self.found.photos += 1;
        if !self.shard.has(path) {
            return Ok(());
        }
        if self.seen < self.done.photos {
            self.seen += 1;
            self.trail.step(path);
            return if self.seen == self.done.photos { self.compare() } else { Ok(()) };
        }
        (self.send)(Item { path: path.into(), load: load()? })
    }

    /// Counts a file that is no photo to be scored.
    pub(super) fn leave_out(&mut self, reason: LeftOut) {
        self.found.left_out.add(reason);
    }

    /// # Errors
    /// When photos of an earlier run are missing.
    pub(super) fn end(self) -> Result<Found> {
        if self.seen < self.done.photos {
            return Err(changed());
        }
        Ok(self.found)
    }

    fn compare(&self) -> Result<()> {
        if self.trail == self.done.trail { Ok(()) } else { Err(changed()) }
    }
}

/// Going on would leave photos out or score some twice.
fn changed() -> anyhow::Error {
    anyhow!(
        "the photos are not those of the run that is to be continued (some were added, removed or \
         renamed): take another --out"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(paths: &[&str], shard: &str, done: Done) -> Result<Vec<String>> {
        let mut taken = Vec::new();
        let mut send = |item: Item| {
            taken.push(item.path);
            Ok(())
        };
        let mut listing = Listing::new(shard.parse().unwrap(), done, &mut send);
        for path in paths {
            listing.offer(path, || Ok(Box::new(|| Ok(Ok(Vec::new())))))?;
        }
        listing.end()?;
        Ok(taken)
    }

    #[test]
    fn shards_are_written_as_i_of_n() {
        assert_eq!("3/4".parse(), Ok(Shard { index: 3, count: 4 }));
        for text in ["4/4", "0/0", "1", "-1/4", "a/b", ""] {
            assert!(text.parse::<Shard>().is_err(), "{text}");
        }
    }

    #[test]
    fn shards_stay_what_they_are_from_release_to_release() {
        let of = |path| (0..4).find(|i| Shard { index: *i, count: 4 }.has(path)).unwrap();
        assert_eq!(["a.jpg", "b.jpg", "s3://photos/inbox/1.jpg"].map(of), [2, 2, 1]);
    }

    #[test]
    fn what_was_done_is_passed_over_only_if_it_is_still_the_same() {
        let mut trail = Trail::default();
        trail.step("a");
        trail.step("b");
        let done = Done { photos: 2, trail };
        assert_eq!(taken(&["a", "b", "c"], "0/1", done.clone()).unwrap(), ["c"]);
        for other in [&["b", "a", "c"][..], &["a", "aa", "b", "c"], &["a"], &[]] {
            let error = taken(other, "0/1", done.clone()).unwrap_err();
            assert!(error.to_string().contains("take another --out"), "{error}");
        }
    }
}
