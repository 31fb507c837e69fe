//! Predictions and the labels given to them, on disk: nothing that was acknowledged is lost when the
//! process is killed, and a label not even when the machine is.

use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Memory for writes before they become files, a keyspace, and for blocks that were read.
const BUFFER: u64 = 4 << 20;
/// The least that the database takes: what is written first goes here.
const JOURNAL: u64 = 64 << 20;
/// Removed entries after which the files are written anew.
const RUBBISH: usize = 50_000;

/// What was answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Predicted {
    /// Of the likeliest class.
    pub(crate) label: String,
    pub(crate) confidence: f32,
    /// [`Model::version`](crate::model::Model).
    pub(crate) model: String,
    /// Of the photo's bytes, in hex.
    pub(crate) sha256: String,
}

/// What was answered, and what it should have been.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Labelled {
    pub(crate) predicted: Predicted,
    pub(crate) actual: String,
    /// When the label was given, in milliseconds since 1970.
    pub(crate) at: u64,
}

/// Keys are prediction ids, whose first six bytes are the time in milliseconds.
pub(crate) struct Store {
    path: PathBuf,
    database: Database,
    predictions: Keyspace,
    labels: Keyspace,
    keep: Duration,
    most: u64,
}

impl Store {
    /// # Errors
    /// When the folder cannot be written, or another process has it.
    pub(crate) fn open(path: &Path, keep: Duration, most: u64) -> Result<Self> {
        let context = || format!("feedback store {}", path.display());
        std::fs::create_dir_all(path).with_context(context)?;
        let options = || KeyspaceCreateOptions::default().max_memtable_size(BUFFER);
        let open = || {
            let database = Database::builder(path)
                .cache_size(BUFFER)
                .worker_threads(1)
                .max_journaling_size(JOURNAL)
                .open()?;
            let predictions = database.keyspace("predictions", options)?;
            let labels = database.keyspace("labels", options)?;
            Ok::<_, fjall::Error>((database, predictions, labels))
        };
        let (database, predictions, labels) = open().with_context(context)?;
        Ok(Self { path: path.into(), database, predictions, labels, keep, most })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// On disk, in bytes.
    pub(crate) fn bytes(&self) -> Result<u64> {
        Ok(self.database.disk_space()?)
    }

    /// Keeps a prediction; the operating system has it when this returns.
    pub(crate) fn predicted(&self, id: Uuid, predicted: &Predicted) -> Result<()> {
        Ok(self.predictions.insert(*id.as_bytes(), serde_json::to_vec(predicted)?)?)
    }

    /// The prediction of this id, if there was one and it is not too old.
    pub(crate) fn find(&self, id: Uuid) -> Result<Option<Predicted>> {
        if let Some(value) = self.predictions.get(id.as_bytes())? {
            return Ok(Some(serde_json::from_slice(&value)?));
        }
        let Some(value) = self.labels.get(id.as_bytes())? else { return Ok(None) };
        let labelled: Labelled = serde_json::from_slice(&value)?;
        Ok(Some(labelled.predicted))
    }

    /// Keeps labels, all or none; the disk has them when this returns. A second label takes the
    /// place of the first.
    pub(crate) fn label(&self, labels: &[(Uuid, Labelled)]) -> Result<()> {
        let mut batch = self.database.batch();
        for (id, labelled) in labels {
            batch.insert(&self.labels, *id.as_bytes(), serde_json::to_vec(labelled)?);
        }
        batch.commit()?;
        Ok(self.database.persist(PersistMode::SyncAll)?)
    }

    /// Labels by the time of their predictions, beginning after an id.
    pub(crate) fn labelled(
        &self,
        after: Option<Uuid>,
    ) -> impl Iterator<Item = Result<(Uuid, Labelled)>> {
        let from = after.map_or(Bound::Unbounded, |id| Bound::Excluded(id.into_bytes()));
        self.labels.range::<[u8; 16], _>((from, Bound::Unbounded)).map(|entry| {
            let (key, value) = entry.into_inner()?;
            Ok((Uuid::from_slice(&key)?, serde_json::from_slice(&value)?))
        })
    }

    /// Forgets what is too old, and the oldest of what is too much: a quarter of the space is for
    /// labels.
    pub(crate) fn retain(&self) -> Result<()> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let oldest = now.saturating_sub(self.keep).as_millis() as u64;
        let quarter = self.most / 4;
        for (keyspace, most) in [(&self.predictions, self.most - quarter), (&self.labels, quarter)]
        {
            // A tenth more than need be, so that it is not done every time.
            let over = keyspace.disk_space().saturating_sub(most);
            let excess = if over > 0 { over + most / 10 } else { 0 };
            let removed = remove_oldest(keyspace, oldest, excess)?;
            if removed > 0 && (over > 0 || removed >= RUBBISH) {
                keyspace.rotate_memtable_and_wait()?;
                keyspace.major_compact()?;
            }
        }
        Ok(())
    }
}

/// Removes what is older than `oldest`, and older entries until `excess` bytes are gone; how many.
fn remove_oldest(keyspace: &Keyspace, oldest: u64, excess: u64) -> Result<usize> {
    let (mut removed, mut freed) = (0, 0);
    for entry in keyspace.iter() {
        let (key, value) = entry.into_inner()?;
        let time = key.iter().take(6).fold(0, |time, byte| time << 8 | u64::from(*byte));
        if time >= oldest && freed >= excess {
            break;
        }
        freed += (key.len() + value.len()) as u64;
        keyspace.remove(key)?;
        removed += 1;
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn predicted(number: usize) -> Predicted {
        let label = ["cat", "dog"][number % 2].into();
        Predicted { label, confidence: 0.9, model: "m".into(), sha256: format!("{number:064}") }
    }

    fn id(milliseconds: u64, number: usize) -> Uuid {
        let mut bytes = (u128::from(milliseconds) << 80).to_be_bytes();
        bytes[8..].copy_from_slice(&(number as u64).to_be_bytes());
        Uuid::from_bytes(bytes)
    }

    #[test]
    fn what_is_kept_is_found_again_and_the_last_label_stands() {
        let folder = tempfile::tempdir().unwrap();
        let keep = Duration::from_secs(3600);
        let ids: Vec<Uuid> = (0..10).map(|_| Uuid::now_v7()).collect();
        let labelled = |number: usize, actual: &str| {
            (ids[number], Labelled { predicted: predicted(number), actual: actual.into(), at: 7 })
        };
        {
            let store = Store::open(folder.path(), keep, 1 << 30).unwrap();
            for (number, id) in ids.iter().enumerate() {
                store.predicted(*id, &predicted(number)).unwrap();
            }
            store.label(&[labelled(1, "cat"), labelled(4, "cat"), labelled(2, "dog")]).unwrap();
            store.label(&[labelled(1, "dog")]).unwrap();
            assert!(Store::open(folder.path(), keep, 1 << 30).is_err(), "one process at a time");
        }
        let store = Store::open(folder.path(), keep, 1 << 30).unwrap();
        store.retain().unwrap();
        assert_eq!(store.find(ids[3]).unwrap(), Some(predicted(3)));
        assert_eq!(store.find(Uuid::now_v7()).unwrap(), None);
        let all: Vec<_> = store.labelled(None).collect::<Result<_>>().unwrap();
        assert_eq!(all, [labelled(1, "dog"), labelled(2, "dog"), labelled(4, "cat")]);
        let rest: Vec<_> = store.labelled(Some(ids[1])).collect::<Result<_>>().unwrap();
        assert_eq!(rest, &all[1..]);
    }

    #[test]
    fn the_old_go_and_of_too_many_the_oldest() {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let now = now.as_millis() as u64;
        let store = Store::open(folder.path(), Duration::from_secs(60), 1 << 20).unwrap();
        let ids: Vec<Uuid> = (0..30_000).map(|number| id(now, number)).collect();
        let old = id(now - 61_000, 0);
        store.predicted(old, &predicted(0)).unwrap();
        for (number, id) in ids.iter().enumerate() {
            store.predicted(*id, &predicted(number)).unwrap();
        }
        store.retain().unwrap();
        assert_eq!(store.find(old).unwrap(), None);
        store.predictions.rotate_memtable_and_wait().unwrap();
        let before = store.predictions.disk_space();
        assert!(before > 1 << 20, "{before}");
        store.retain().unwrap();
        assert_eq!(store.find(ids[0]).unwrap(), None);
        assert!(store.find(ids[29_999]).unwrap().is_some());
        let after = store.predictions.disk_space();
        assert!(after <= 3 << 18, "{after} of {before}");
    }
}
