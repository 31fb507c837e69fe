//! Predictions and their labels on disk. Acknowledged entries survive the end of the process; labels also survive a crash of
//! the machine.
//!
//! The database is an LSM tree (`fjall`) with two keyspaces, `predictions` and `labels`. Keys are prediction ids (UUID
//! version 7), whose first 48 bits are the time in milliseconds since 1970, so that entries are in the order of time; values
//! are JSON.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use fjall::{Database, PersistMode};
use petnet::disk::write_atomically;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::table::Table;

/// Size of the block cache in bytes.
const BLOCK_CACHE_BYTES: u64 = 4 << 20;
/// Size of the write-ahead journal in bytes, the minimum that the database accepts.
const JOURNAL_BYTES: u64 = 64 << 20;
/// Number of removed entries after which a keyspace is compacted.
const COMPACT_AFTER_REMOVALS: u64 = 50_000;
/// Number of read errors after which the recovery of a damaged store stops.
const MAX_ERRORS: usize = 1000;

/// A prediction as it was sent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct StoredPrediction {
    /// The most likely class, or all predicted classes of a multi-label model, see
    /// [`Prediction::label_text`](petnet::Prediction::label_text).
    pub(crate) label: String,
    pub(crate) confidence: f32,
    /// [`Model::name`](crate::models::Model::name); empty where it was not stored.
    #[serde(default)]
    pub(crate) model_name: String,
    /// [`Model::version`](crate::models::Model::version).
    #[serde(rename = "model")]
    pub(crate) model_version: String,
    /// SHA-256 of the image's bytes, in hex.
    pub(crate) sha256: String,
}

/// A prediction and its actual class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct LabelledPrediction {
    pub(crate) predicted: StoredPrediction,
    pub(crate) actual: String,
    /// Time at which the label was given, in milliseconds since 1970.
    pub(crate) at: u64,
    /// True for a label that was sent with a valid API key.
    #[serde(default)]
    pub(crate) authenticated: bool,
}

/// Name of the file with the number of labels in the database, by which labels lost to damage are counted.
const COUNT_FILE: &str = "labels.json";

/// The database and the number of its labels.
pub(crate) struct Store {
    path: PathBuf,
    database: Database,
    predictions: Table,
    labels: Table,
    /// Number of labels; locked while labels are added or removed, until [`COUNT_FILE`] is written.
    count: Mutex<u64>,
    retention: Retention,
}

/// Limits of the entries that are kept.
#[derive(Clone, Copy)]
pub(crate) struct Retention {
    pub(crate) max_age: Duration,
    /// On disk, without the journal; a quarter of it is for labels.
    pub(crate) max_bytes: u64,
}

/// Damage that was found when a store was opened.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Recovery {
    /// New path of the damaged folder.
    pub(crate) set_aside: Option<PathBuf>,
    /// Number of labels that could not be recovered.
    pub(crate) lost: u64,
}

impl Store {
    /// Opens a store; a damaged one is replaced.
    /// Errors: when the folder cannot be written, or another process has locked it.
    pub(crate) fn open(path: &Path, retention: Retention) -> Result<(Self, Recovery)> {
        let opened = match Self::read(path, retention) {
            Err(error) if is_damage(&error) => Self::replace(path, retention),
            opened => opened,
        };
        opened.with_context(|| format!("feedback store {}", path.display()))
    }

    /// Replaces a damaged store by a new one with those of its labels that can be read; its predictions are not copied. The
    /// damaged store is renamed once the new one is complete, so that after an error the next call can begin again.
    /// Errors: as [`Store::open`].
    pub(crate) fn replace(path: &Path, retention: Retention) -> Result<(Self, Recovery)> {
        let mut set_aside = None;
        // It does not exist where an earlier call ended before the second rename, which is in `read`.
        if path.exists() {
            Self::write_replacement(path, retention)?;
            let aside = path.with_added_extension(format!("damaged-{}", Uuid::now_v7()));
            std::fs::rename(path, &aside)?;
            set_aside = Some(aside);
        }
        let (store, recovery) = Self::read(path, retention)?;
        Ok((store, Recovery { set_aside, ..recovery }))
    }

    /// Writes the replacement of a damaged store anew: its readable labels, and the number of all, so that the others count as lost.
    fn write_replacement(damaged: &Path, retention: Retention) -> Result<()> {
        let path = replacement(damaged);
        if path.exists() {
            std::fs::remove_dir_all(&path)?;
        }
        let (store, _) = Self::read(&path, retention)?;
        let copied = match Self::open_database(damaged).map_err(anyhow::Error::from) {
            Ok((_, _, labels)) => store.copy_labels(&labels)?,
            Err(error) if is_damage(&error) => 0,
            Err(error) => return Err(error),
        };
        store.write_count(copied.max(Self::read_count(damaged)))
    }

    /// Opens a store and reads all of its labels.
    fn read(path: &Path, retention: Retention) -> Result<(Self, Recovery)> {
        if !path.exists() && replacement(path).exists() {
            std::fs::rename(replacement(path), path)?;
        }
        std::fs::create_dir_all(path)?;
        let (recorded, count) = (Self::read_count(path), Mutex::new(0));
        let (database, predictions, labels) = Self::open_database(path)?;
        let store = Self { path: path.into(), database, predictions, labels, count, retention };
        let mut read = 0;
        for labelled in store.labels_after(None) {
            labelled?;
            read += 1;
        }
        *store.lock_count() = read;
        store.write_count(read)?;
        Ok((store, Recovery { set_aside: None, lost: recorded.saturating_sub(read) }))
    }

    /// Copies the readable labels of a damaged store, and returns their number.
    fn copy_labels(&self, damaged: &Table) -> Result<u64> {
        // Each unreadable block yields one error.
        let (mut copied, mut errors) = (0, 0);
        for entry in damaged.keyspace.iter() {
            match entry.into_inner() {
                Ok((key, value)) => {
                    self.labels.insert(key.as_ref().try_into()?, value.to_vec())?;
                    copied += 1;
                }
                Err(_) if errors < MAX_ERRORS => errors += 1,
                Err(_) => break,
            }
        }
        self.database.persist(PersistMode::SyncAll)?;
        Ok(copied)
    }

    fn lock_count(&self) -> MutexGuard<'_, u64> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_database(path: &Path) -> fjall::Result<(Database, Table, Table)> {
        let database = Database::builder(path)
            .cache_size(BLOCK_CACHE_BYTES)
            .worker_threads(1)
            .max_journaling_size(JOURNAL_BYTES)
            .open()?;
        let predictions = Table::open(&database, "predictions")?;
        let labels = Table::open(&database, "labels")?;
        Ok((database, predictions, labels))
    }

    /// The number of labels in [`COUNT_FILE`]; 0 where it is unknown, so that no label appears lost.
    fn read_count(path: &Path) -> u64 {
        let text = std::fs::read(path.join(COUNT_FILE)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or(0)
    }

    fn write_count(&self, count: u64) -> Result<()> {
        Ok(write_atomically(&self.path.join(COUNT_FILE), count.to_string().as_bytes())?)
    }

    /// Size on disk in bytes.
    pub(crate) fn bytes(&self) -> Result<u64> {
        Ok(self.database.disk_space()?)
    }

    /// Stores a prediction; it is written to the operating system, but not synced to disk, when this returns.
    pub(crate) fn insert_prediction(&self, id: Uuid, predicted: &StoredPrediction) -> Result<()> {
        self.predictions.insert(*id.as_bytes(), serde_json::to_vec(predicted)?)
    }

    /// The prediction of this id, unless it was removed or never existed.
    pub(crate) fn find(&self, id: Uuid) -> Result<Option<StoredPrediction>> {
        if let Some(value) = self.predictions.keyspace.get(id.as_bytes())? {
            return Ok(Some(serde_json::from_slice(&value)?));
        }
        let Some(value) = self.labels.keyspace.get(id.as_bytes())? else { return Ok(None) };
        let labelled: LabelledPrediction = serde_json::from_slice(&value)?;
        Ok(Some(labelled.predicted))
    }

    /// Stores labels, all or none; they are synced to disk when this returns. A second label of a prediction replaces the
    /// first.
    pub(crate) fn insert_labels(&self, labels: &[(Uuid, LabelledPrediction)]) -> Result<()> {
        let mut count = self.lock_count();
        let mut new = HashSet::new();
        let mut entries = Vec::with_capacity(labels.len());
        for (id, labelled) in labels {
            if self.labels.keyspace.get(id.as_bytes())?.is_none() {
                new.insert(id);
            }
            entries.push((*id.as_bytes(), serde_json::to_vec(labelled)?));
        }
        self.labels.insert_all(self.database.batch(), entries)?;
        self.database.persist(PersistMode::SyncAll)?;
        *count += new.len() as u64;
        // Written after the labels: a crash in between leaves the count too small, and no label appears lost.
        self.write_count(*count)
    }

    /// Labels after an id, in the order of their predictions.
    pub(crate) fn labels_after(
        &self,
        after: Option<Uuid>,
    ) -> impl Iterator<Item = Result<(Uuid, LabelledPrediction)>> {
        let from = after.map_or(Bound::Unbounded, |id| Bound::Excluded(id.into_bytes()));
        self.labels.keyspace.range::<[u8; 16], _>((from, Bound::Unbounded)).map(|entry| {
            let (key, value) = entry.into_inner()?;
            Ok((Uuid::from_slice(&key)?, serde_json::from_slice(&value)?))
        })
    }

    /// Removes entries that are too old, and the oldest of those above the maximum size.
    pub(crate) fn retain(&self) -> Result<()> {
        let Retention { max_age, max_bytes } = self.retention;
        let oldest = u128::from(super::now()).saturating_sub(max_age.as_millis()) as u64;
        let label_bytes = max_bytes / 4;
        if prune(&self.predictions, oldest, max_bytes - label_bytes, &mut 0)? {
            self.predictions.compact()?;
        }
        let mut count = self.lock_count();
        // 0 means unknown: after a crash, labels that are removed below must not be counted as lost.
        self.write_count(0)?;
        let mut removed = 0;
        let worth_compacting = prune(&self.labels, oldest, label_bytes, &mut removed);
        *count = count.saturating_sub(removed);
        self.write_count(*count)?;
        drop(count);
        if worth_compacting? { self.labels.compact() } else { Ok(()) }
    }
}

/// Removes entries that are older than `oldest`, and the oldest of those above `max_bytes`. Adds their number to `removed`, also
/// where it fails midway. Returns true where the keyspace should be compacted.
fn prune(table: &Table, oldest: u64, max_bytes: u64, removed: &mut u64) -> Result<bool> {
    let bytes_over_limit = table.keyspace.disk_space().saturating_sub(max_bytes);
    // A tenth more than necessary, so that not every call compacts.
    let excess = if bytes_over_limit > 0 { bytes_over_limit + max_bytes / 10 } else { 0 };
    let mut freed = 0;
    for entry in table.keyspace.iter() {
        let (key, value) = entry.into_inner()?;
        let time = key.iter().take(6).fold(0, |time, byte| time << 8 | u64::from(*byte));
        if time >= oldest && freed >= excess {
            break;
        }
        freed += (key.len() + value.len()) as u64;
        // Counted first: a removal that fails may have taken effect.
        *removed += 1;
        table.remove(key)?;
    }
    Ok(*removed > 0 && (bytes_over_limit > 0 || *removed >= COMPACT_AFTER_REMOVALS))
}

/// The folder of the store that will replace a damaged one.
fn replacement(damaged: &Path) -> PathBuf {
    damaged.with_added_extension("replacement")
}

/// True for an error caused by the files' content, false for one of the disk or of permissions.
pub(crate) fn is_damage(error: &anyhow::Error) -> bool {
    let io = error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>());
    if let Some(error) = io {
        // `InvalidInput` is the error of a seek to a damaged offset.
        return matches!(
            error.kind(),
            ErrorKind::InvalidData
                | ErrorKind::InvalidInput
                | ErrorKind::UnexpectedEof
                | ErrorKind::NotFound
        );
    }
    match error.chain().find_map(|cause| cause.downcast_ref::<fjall::Error>()) {
        None => error.chain().any(|cause| cause.is::<serde_json::Error>()),
        Some(
            fjall::Error::Storage(_)
            | fjall::Error::JournalRecovery(_)
            | fjall::Error::InvalidVersion(_)
            | fjall::Error::Decompress(_)
            | fjall::Error::InvalidTrailer
            | fjall::Error::InvalidTag(_)
            | fjall::Error::Unrecoverable,
        ) => true,
        // Others are errors of the disk or of later versions of the crate; they must not set an intact store aside.
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RETENTION: Retention = Retention { max_age: Duration::from_hours(1), max_bytes: 1 << 30 };

    fn predicted(number: usize) -> StoredPrediction {
        let label = ["cat", "dog"][number % 2].into();
        StoredPrediction {
            label,
            confidence: 0.9,
            model_name: "m".into(),
            model_version: "1".into(),
            sha256: format!("{number:064}"),
        }
    }

    fn labelled(number: usize, actual: &str) -> LabelledPrediction {
        let (predicted, actual) = (predicted(number), actual.into());
        LabelledPrediction { predicted, actual, at: 7, authenticated: true }
    }

    fn id(milliseconds: u64, number: usize) -> Uuid {
        let mut bytes = (u128::from(milliseconds) << 80).to_be_bytes();
        bytes[8..].copy_from_slice(&(number as u64).to_be_bytes());
        Uuid::from_bytes(bytes)
    }

    #[test]
    fn stored_predictions_are_found_after_a_restart_and_the_last_label_counts() {
        let folder = tempfile::tempdir().unwrap();
        let ids: Vec<Uuid> = (0..10).map(|_| Uuid::now_v7()).collect();
        let labelled = |number: usize, actual: &str| (ids[number], labelled(number, actual));
        {
            let (store, recovery) = Store::open(folder.path(), RETENTION).unwrap();
            assert_eq!(recovery, Recovery::default());
            for (number, id) in ids.iter().enumerate() {
                store.insert_prediction(*id, &predicted(number)).unwrap();
            }
            store
                .insert_labels(&[labelled(1, "cat"), labelled(4, "cat"), labelled(2, "dog")])
                .unwrap();
            store.insert_labels(&[labelled(1, "dog")]).unwrap();
            assert!(Store::open(folder.path(), RETENTION).is_err(), "one process at a time");
        }
        let (store, recovery) = Store::open(folder.path(), RETENTION).unwrap();
        assert_eq!(recovery, Recovery::default());
        store.retain().unwrap();
        assert_eq!(store.find(ids[3]).unwrap(), Some(predicted(3)));
        assert_eq!(store.find(Uuid::now_v7()).unwrap(), None);
        let all: Vec<_> = store.labels_after(None).collect::<Result<_>>().unwrap();
        assert_eq!(all, [labelled(1, "dog"), labelled(2, "dog"), labelled(4, "cat")]);
        let rest: Vec<_> = store.labels_after(Some(ids[1])).collect::<Result<_>>().unwrap();
        assert_eq!(rest, &all[1..]);
        let nameless = r#"{ "label": "cat", "confidence": 0.9, "model": "1", "sha256": "" }"#;
        assert!(serde_json::from_str::<StoredPrediction>(nameless).unwrap().model_name.is_empty());
    }

    #[test]
    fn labels_added_while_old_ones_are_removed_are_all_kept_and_counted() {
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(folder.path(), RETENTION).unwrap();
        let label = || store.insert_labels(&[(Uuid::now_v7(), labelled(0, "cat"))]);
        std::thread::scope(|scope| {
            let writers = [0, 1].map(|_| scope.spawn(|| (0..50).try_for_each(|_| label())));
            (0..50).try_for_each(|_| store.retain()).unwrap();
            writers.into_iter().for_each(|writer| writer.join().unwrap().unwrap());
        });
        assert_eq!(store.labels_after(None).count(), 100);
        assert_eq!(Store::read_count(folder.path()), 100);
    }

    /// Flips one bit at a time at several offsets of every file of a closed store.
    #[test]
    fn with_any_one_bit_flipped_it_opens_and_counts_what_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        {
            let (store, _) = Store::open(&path, RETENTION).unwrap();
            let all: Vec<_> =
                (0..20).map(|number| (Uuid::now_v7(), labelled(number, "cat"))).collect();
            store.insert_labels(&all[..10]).unwrap();
            store.labels.keyspace.rotate_memtable_and_wait().unwrap();
            store.insert_labels(&all[10..]).unwrap();
        }
        let files = files(&path);
        let read = |file: &PathBuf| (file.clone(), std::fs::read(file).unwrap());
        let contents: Vec<_> = files.iter().map(read).collect();
        let (mut flips, mut rescued) = (0, 0);
        for (file, bytes) in contents.iter().filter(|(file, _)| !file.ends_with(COUNT_FILE)) {
            let written = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            for offset in (0..written).step_by((written / 6).max(1)) {
                let _ = std::fs::remove_dir_all(&path);
                for (file, bytes) in &contents {
                    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
                    std::fs::write(file, bytes).unwrap();
                }
                let mut flipped = bytes.clone();
                flipped[offset] ^= 0x10;
                std::fs::write(file, flipped).unwrap();
                let context = format!("byte {offset} of {}", file.display());
                let (store, recovery) = Store::open(&path, RETENTION).expect(&context);
                let readable =
                    store.labels_after(None).filter(|label| label.is_ok()).count() as u64;
                assert_eq!(readable + recovery.lost, 20, "{context}: {recovery:?}");
                rescued += usize::from(recovery.set_aside.is_some() && readable > 0);
                store.insert_labels(&[(Uuid::now_v7(), labelled(0, "cat"))]).expect(&context);
                flips += 1;
            }
        }
        assert!(flips > 20 && rescued > 0, "{rescued} of {flips}");
    }

    fn files(folder: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let (folders, mut found): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
        folders.iter().for_each(|folder| found.extend(files(folder)));
        found
    }

    #[test]
    fn entries_that_are_too_old_are_removed_and_of_too_many_the_oldest() {
        let folder = tempfile::tempdir().unwrap();
        let now = crate::feedback::now();
        let retention = Retention { max_age: Duration::from_secs(60), max_bytes: 1 << 20 };
        let (store, _) = Store::open(folder.path(), retention).unwrap();
        let ids: Vec<Uuid> = (0..30_000).map(|number| id(now, number)).collect();
        let old = id(now - 61_000, 0);
        store.insert_prediction(old, &predicted(0)).unwrap();
        for (number, id) in ids.iter().enumerate() {
            store.insert_prediction(*id, &predicted(number)).unwrap();
        }
        store.retain().unwrap();
        assert_eq!(store.find(old).unwrap(), None);
        store.predictions.keyspace.rotate_memtable_and_wait().unwrap();
        let before = store.predictions.keyspace.disk_space();
        assert!(before > 1 << 20, "{before}");
        store.retain().unwrap();
        assert_eq!(store.find(ids[0]).unwrap(), None);
        assert!(store.find(ids[29_999]).unwrap().is_some());
        // Removed entries that a reader may still see remain in the files until a later compaction.
        (0..2).for_each(|_| store.retain().unwrap());
        let after = store.predictions.keyspace.disk_space();
        assert!(after <= 3 << 18, "{after} of {before}");
    }
}
