//! Predictions and the labels given to them, on disk: nothing that was acknowledged is lost when the
//! process is killed, and a label not even when the machine is.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
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

/// A prediction, as it was answered.
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

/// A prediction, and the class that it should have been.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Labelled {
    pub(crate) predicted: Predicted,
    pub(crate) actual: String,
    /// When the label was given, in milliseconds since 1970.
    pub(crate) at: u64,
    /// Set for a label that came with a valid API key.
    #[serde(default)]
    pub(crate) authenticated: bool,
}

/// Name of the file that says how many labels the database holds: what is missing after damage can be told.
const COUNT: &str = "labels.json";

/// Keys are prediction ids, whose first six bytes are the time in milliseconds.
pub(crate) struct Store {
    path: PathBuf,
    database: Database,
    predictions: Keyspace,
    labels: Keyspace,
    /// Number of labels.
    count: Mutex<u64>,
    keep: Duration,
    most: u64,
}

/// Damage that was found when a store was opened.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Recovery {
    /// The damaged folder's new name.
    pub(crate) set_aside: Option<PathBuf>,
    /// Number of labels that were kept and are not there any more.
    pub(crate) lost: u64,
}

impl Store {
    /// Opens a store; one that is damaged beyond recovery is renamed, and an empty one takes its place.
    ///
    /// # Errors
    /// When the folder cannot be written, or another process has it.
    pub(crate) fn open(path: &Path, keep: Duration, most: u64) -> Result<(Self, Recovery)> {
        let context = || format!("feedback store {}", path.display());
        std::fs::create_dir_all(path).with_context(context)?;
        let known = Self::known_count(path);
        let mut recovery = Recovery::default();
        let opened = match Self::open_database(path) {
            Err(error) if is_damage(&error) => {
                let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
                let name = format!("damaged-{}", seconds.unwrap_or_default().as_secs());
                let aside = path.with_extension(name);
                std::fs::rename(path, &aside).with_context(context)?;
                std::fs::create_dir_all(path).with_context(context)?;
                recovery.set_aside = Some(aside);
                Self::open_database(path)
            }
            opened => opened,
        };
        let (database, predictions, labels) = opened.with_context(context)?;
        let count = Mutex::new(0);
        let store = Self { path: path.into(), database, predictions, labels, count, keep, most };
        let there = store.labels.iter().map_while(|entry| entry.into_inner().ok()).count() as u64;
        recovery.lost = known.saturating_sub(there);
        store.write_count(there)?;
        Ok((store, recovery))
    }

    fn open_database(path: &Path) -> fjall::Result<(Database, Keyspace, Keyspace)> {
        let options = || KeyspaceCreateOptions::default().max_memtable_size(BUFFER);
        let database = Database::builder(path)
            .cache_size(BUFFER)
            .worker_threads(1)
            .max_journaling_size(JOURNAL)
            .open()?;
        let predictions = database.keyspace("predictions", options)?;
        let labels = database.keyspace("labels", options)?;
        Ok((database, predictions, labels))
    }

    fn known_count(path: &Path) -> u64 {
        let text = std::fs::read(path.join(COUNT)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or(0)
    }

    fn write_count(&self, count: u64) -> Result<()> {
        petnet::write_atomically(&self.path.join(COUNT), count.to_string().as_bytes())?;
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) = count;
        Ok(())
    }

    fn count(&self) -> u64 {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner)
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
        let mut new = HashSet::new();
        for (id, labelled) in labels {
            if self.labels.get(id.as_bytes())?.is_none() {
                new.insert(id);
            }
            batch.insert(&self.labels, *id.as_bytes(), serde_json::to_vec(labelled)?);
        }
        batch.commit()?;
        self.database.persist(PersistMode::SyncAll)?;
        // Written last: a crash before it loses a number, and no label.
        self.write_count(self.count() + new.len() as u64)
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
            let labels = std::ptr::eq(keyspace, &self.labels);
            let count = self.count();
            if labels {
                // Labels that are removed below must not look lost after a crash.
                self.write_count(0)?;
            }
            let removed = remove_oldest(keyspace, oldest, excess)?;
            if labels {
                self.write_count(count.saturating_sub(removed as u64))?;
            }
            if removed > 0 && (over > 0 || removed >= RUBBISH) {
                keyspace.rotate_memtable_and_wait()?;
                keyspace.major_compact()?;
            }
        }
        Ok(())
    }
}

/// True for an error of the files' content, false for one of the disk or of permissions.
fn is_damage(error: &fjall::Error) -> bool {
    match error {
        fjall::Error::Io(error) => matches!(
            error.kind(),
            ErrorKind::InvalidData | ErrorKind::UnexpectedEof | ErrorKind::NotFound
        ),
        fjall::Error::Locked => false,
        fjall::Error::Storage(_)
        | fjall::Error::JournalRecovery(_)
        | fjall::Error::InvalidVersion(_)
        | fjall::Error::Decompress(_)
        | fjall::Error::InvalidTrailer
        | fjall::Error::InvalidTag(_)
        | fjall::Error::Poisoned
        | fjall::Error::KeyspaceDeleted
        | fjall::Error::Unrecoverable => true,
        // Of later versions: better an error at the start than a store set aside.
        _ => false,
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
            (
                ids[number],
                Labelled {
                    predicted: predicted(number),
                    actual: actual.into(),
                    at: 7,
                    authenticated: true,
                },
            )
        };
        {
            let (store, recovery) = Store::open(folder.path(), keep, 1 << 30).unwrap();
            assert_eq!(recovery, Recovery::default());
            for (number, id) in ids.iter().enumerate() {
                store.predicted(*id, &predicted(number)).unwrap();
            }
            store.label(&[labelled(1, "cat"), labelled(4, "cat"), labelled(2, "dog")]).unwrap();
            store.label(&[labelled(1, "dog")]).unwrap();
            assert!(Store::open(folder.path(), keep, 1 << 30).is_err(), "one process at a time");
        }
        let (store, recovery) = Store::open(folder.path(), keep, 1 << 30).unwrap();
        assert_eq!(recovery, Recovery::default());
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
        let (store, _) = Store::open(folder.path(), Duration::from_secs(60), 1 << 20).unwrap();
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
