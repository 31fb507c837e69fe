//! Predictions and the labels given to them, on disk: nothing that was acknowledged is lost when the
//! process is killed, and a label not even when the machine is.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use fjall::{Database, PersistMode};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::table::Table;
use crate::disk;

/// Memory for blocks that were read.
const CACHE: u64 = 4 << 20;
/// The least that the database takes: what is written first goes here.
const JOURNAL: u64 = 64 << 20;
/// Removed entries after which the files are written anew.
const RUBBISH: u64 = 50_000;
/// Errors after which no more of a damaged store is read.
const MOST_ERRORS: usize = 1000;

/// A prediction, as it was answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Predicted {
    /// The likeliest class, or of a multi-label model all of the image's, see
    /// [`Prediction::label_text`](petnet::Prediction::label_text).
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
    predictions: Table,
    labels: Table,
    /// Number of labels; held by who adds or removes some, until the file says so too.
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
    /// Opens a store; one that is damaged gets replaced.
    ///
    /// # Errors
    /// When the folder cannot be written, or another process has it.
    pub(crate) fn open(path: &Path, keep: Duration, most: u64) -> Result<(Self, Recovery)> {
        let known = Self::known_count(path);
        match Self::read(path, keep, most) {
            Err(error) if is_damage(&error) => Self::replace(path, keep, most),
            opened => {
                let store = opened.with_context(|| format!("feedback store {}", path.display()))?;
                let lost = known.saturating_sub(*store.counted());
                Ok((store, Recovery { set_aside: None, lost }))
            }
        }
    }

    /// Renames a damaged store, and opens a new one with those of its labels that can be read. Predictions do not
    /// come along.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub(crate) fn replace(path: &Path, keep: Duration, most: u64) -> Result<(Self, Recovery)> {
        let context = || format!("feedback store {}", path.display());
        let known = Self::known_count(path);
        let aside = path.with_extension(format!("damaged-{}", Uuid::now_v7()));
        std::fs::rename(path, &aside).with_context(context)?;
        let store = Self::read(path, keep, most).with_context(context)?;
        if let Ok((_, _, damaged)) = Self::open_database(&aside) {
            store.take_labels(&damaged).with_context(context)?;
        }
        let lost = known.saturating_sub(*store.counted());
        Ok((store, Recovery { set_aside: Some(aside), lost }))
    }

    /// Opens a store and reads all of its labels.
    fn read(path: &Path, keep: Duration, most: u64) -> Result<Self> {
        std::fs::create_dir_all(path)?;
        let (database, predictions, labels) = Self::open_database(path)?;
        let count = Mutex::new(0);
        let store = Self { path: path.into(), database, predictions, labels, count, keep, most };
        let mut there = 0;
        for labelled in store.labelled(None) {
            labelled?;
            there += 1;
        }
        *store.counted() = there;
        store.write_count(there)?;
        Ok(store)
    }

    /// Copies what can be read of another store's labels.
    fn take_labels(&self, damaged: &Table) -> Result<()> {
        let mut count = self.counted();
        // Each block that cannot be read is an error.
        let mut errors = 0;
        for entry in damaged.keyspace.iter() {
            match entry.into_inner() {
                Ok((key, value)) => {
                    self.labels.insert(key.as_ref().try_into()?, value.to_vec())?;
                    *count += 1;
                }
                Err(_) if errors < MOST_ERRORS => errors += 1,
                Err(_) => break,
            }
        }
        self.database.persist(PersistMode::SyncAll)?;
        self.write_count(*count)
    }

    fn counted(&self) -> MutexGuard<'_, u64> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_database(path: &Path) -> fjall::Result<(Database, Table, Table)> {
        let database = Database::builder(path)
            .cache_size(CACHE)
            .worker_threads(1)
            .max_journaling_size(JOURNAL)
            .open()?;
        let predictions = Table::open(&database, "predictions")?;
        let labels = Table::open(&database, "labels")?;
        Ok((database, predictions, labels))
    }

    fn known_count(path: &Path) -> u64 {
        let text = std::fs::read(path.join(COUNT)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or(0)
    }

    fn write_count(&self, count: u64) -> Result<()> {
        disk::write(&self.path.join(COUNT), count.to_string().as_bytes())
    }

    /// On disk, in bytes.
    pub(crate) fn bytes(&self) -> Result<u64> {
        Ok(self.database.disk_space()?)
    }

    /// Keeps a prediction; the operating system has it when this returns.
    pub(crate) fn predicted(&self, id: Uuid, predicted: &Predicted) -> Result<()> {
        self.predictions.insert(*id.as_bytes(), serde_json::to_vec(predicted)?)
    }

    /// The prediction of this id, if there was one and it is not too old.
    pub(crate) fn find(&self, id: Uuid) -> Result<Option<Predicted>> {
        if let Some(value) = self.predictions.keyspace.get(id.as_bytes())? {
            return Ok(Some(serde_json::from_slice(&value)?));
        }
        let Some(value) = self.labels.keyspace.get(id.as_bytes())? else { return Ok(None) };
        let labelled: Labelled = serde_json::from_slice(&value)?;
        Ok(Some(labelled.predicted))
    }

    /// Keeps labels, all or none; the disk has them when this returns. A second label takes the
    /// place of the first.
    pub(crate) fn label(&self, labels: &[(Uuid, Labelled)]) -> Result<()> {
        let mut count = self.counted();
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
        // Written last: a crash before it loses a number, and no label.
        self.write_count(*count)
    }

    /// Labels by the time of their predictions, beginning after an id.
    pub(crate) fn labelled(
        &self,
        after: Option<Uuid>,
    ) -> impl Iterator<Item = Result<(Uuid, Labelled)>> {
        let from = after.map_or(Bound::Unbounded, |id| Bound::Excluded(id.into_bytes()));
        self.labels.keyspace.range::<[u8; 16], _>((from, Bound::Unbounded)).map(|entry| {
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
        if prune(&self.predictions, oldest, self.most - quarter)?.1 {
            self.predictions.compact()?;
        }
        let mut count = self.counted();
        // Labels that are removed below must not look lost after a crash.
        self.write_count(0)?;
        let (removed, worth_compacting) = prune(&self.labels, oldest, quarter)?;
        *count = count.saturating_sub(removed);
        self.write_count(*count)?;
        drop(count);
        if worth_compacting { self.labels.compact() } else { Ok(()) }
    }
}

/// Removes what is too old, and the oldest of what takes more than `most` bytes: how many entries, and
/// true when the files should be written anew.
fn prune(table: &Table, oldest: u64, most: u64) -> Result<(u64, bool)> {
    let over = table.keyspace.disk_space().saturating_sub(most);
    // A tenth more than need be, so that it is not done every time.
    let excess = if over > 0 { over + most / 10 } else { 0 };
    let removed = remove_oldest(table, oldest, excess)?;
    Ok((removed, removed > 0 && (over > 0 || removed >= RUBBISH)))
}

/// True for an error of the files' content, false for one of the disk or of permissions.
pub(crate) fn is_damage(error: &anyhow::Error) -> bool {
    let io = error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>());
    if let Some(error) = io {
        // An offset that was altered leads to nowhere: `InvalidInput`.
        return matches!(
            error.kind(),
            ErrorKind::InvalidData
                | ErrorKind::InvalidInput
                | ErrorKind::UnexpectedEof
                | ErrorKind::NotFound
        );
    }
    match error.downcast_ref::<fjall::Error>() {
        None => error.is::<serde_json::Error>(),
        Some(
            fjall::Error::Storage(_)
            | fjall::Error::JournalRecovery(_)
            | fjall::Error::InvalidVersion(_)
            | fjall::Error::Decompress(_)
            | fjall::Error::InvalidTrailer
            | fjall::Error::InvalidTag(_)
            | fjall::Error::Unrecoverable,
        ) => true,
        // The others are of the disk, or of later versions: better an error than a store set aside.
        Some(_) => false,
    }
}

/// Removes what is older than `oldest`, and older entries until `excess` bytes are gone; how many.
fn remove_oldest(table: &Table, oldest: u64, excess: u64) -> Result<u64> {
    let (mut removed, mut freed) = (0, 0);
    for entry in table.keyspace.iter() {
        let (key, value) = entry.into_inner()?;
        let time = key.iter().take(6).fold(0, |time, byte| time << 8 | u64::from(*byte));
        if time >= oldest && freed >= excess {
            break;
        }
        freed += (key.len() + value.len()) as u64;
        table.remove(key)?;
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
    fn labels_given_while_old_ones_go_are_all_kept_and_counted() {
        let folder = tempfile::tempdir().unwrap();
        let keep = Duration::from_secs(3600);
        let (store, _) = Store::open(folder.path(), keep, 1 << 30).unwrap();
        let label = || {
            let labelled = Labelled {
                predicted: predicted(0),
                actual: "cat".into(),
                at: 7,
                authenticated: false,
            };
            store.label(&[(Uuid::now_v7(), labelled)])
        };
        std::thread::scope(|scope| {
            let givers = [0, 1].map(|_| scope.spawn(|| (0..50).try_for_each(|_| label())));
            (0..50).try_for_each(|_| store.retain()).unwrap();
            givers.into_iter().for_each(|giver| giver.join().unwrap().unwrap());
        });
        assert_eq!(store.labelled(None).count(), 100);
        assert_eq!(Store::known_count(folder.path()), 100);
    }

    /// Every file of a closed store, one bit flipped at some places of each.
    #[test]
    fn with_any_one_bit_flipped_it_opens_and_counts_what_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let keep = Duration::from_secs(3600);
        let path = folder.path().join("store");
        let label = |number| Labelled {
            predicted: predicted(number),
            actual: "cat".into(),
            at: 7,
            authenticated: true,
        };
        {
            let (store, _) = Store::open(&path, keep, 1 << 30).unwrap();
            let all: Vec<_> = (0..20).map(|number| (Uuid::now_v7(), label(number))).collect();
            store.label(&all[..10]).unwrap();
            store.labels.keyspace.rotate_memtable_and_wait().unwrap();
            store.label(&all[10..]).unwrap();
        }
        let files = files(&path);
        let read = |file: &PathBuf| (file.clone(), std::fs::read(file).unwrap());
        let contents: Vec<_> = files.iter().map(read).collect();
        let (mut flips, mut rescued) = (0, 0);
        for (file, bytes) in contents.iter().filter(|(file, _)| !file.ends_with(COUNT)) {
            let written = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            for place in (0..written).step_by((written / 6).max(1)) {
                let _ = std::fs::remove_dir_all(&path);
                for (file, bytes) in &contents {
                    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
                    std::fs::write(file, bytes).unwrap();
                }
                let mut flipped = bytes.clone();
                flipped[place] ^= 0x10;
                std::fs::write(file, flipped).unwrap();
                let context = format!("byte {place} of {}", file.display());
                let (store, recovery) = Store::open(&path, keep, 1 << 30).expect(&context);
                let there = store.labelled(None).filter(|label| label.is_ok()).count() as u64;
                assert_eq!(there + recovery.lost, 20, "{context}: {recovery:?}");
                rescued += usize::from(recovery.set_aside.is_some() && there > 0);
                store.label(&[(Uuid::now_v7(), label(0))]).expect(&context);
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
        store.predictions.keyspace.rotate_memtable_and_wait().unwrap();
        let before = store.predictions.keyspace.disk_space();
        assert!(before > 1 << 20, "{before}");
        store.retain().unwrap();
        assert_eq!(store.find(ids[0]).unwrap(), None);
        assert!(store.find(ids[29_999]).unwrap().is_some());
        // Removed entries that a reader may still see stay in the files for another turn.
        (0..2).for_each(|_| store.retain().unwrap());
        let after = store.predictions.keyspace.disk_space();
        assert!(after <= 3 << 18, "{after} of {before}");
    }
}
