//! One keyspace of the database, which flushes its memtable to files by itself.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch};

/// Size of the memtable in bytes at which it is flushed.
const MEMTABLE_BYTES: u64 = 4 << 20;
/// Overhead of an entry in the memtable in bytes, in addition to key and value.
const ENTRY_OVERHEAD_BYTES: u64 = 64;

/// A keyspace that requests each flush once. Above its own limit, the database requests a flush at every write: a thousand
/// requests fill its worker's queue, and the worker then waits forever to add to it (fjall 3.1, pull request 323). The
/// database's limit is therefore disabled.
pub(super) struct Table {
    pub(super) keyspace: Keyspace,
    /// Bytes written since the last flush.
    written: AtomicU64,
}

impl Table {
    pub(super) fn open(database: &Database, name: &str) -> fjall::Result<Self> {
        let options = || KeyspaceCreateOptions::default().max_memtable_size(u64::MAX);
        Ok(Self { keyspace: database.keyspace(name, options)?, written: AtomicU64::new(0) })
    }

    pub(super) fn insert(&self, key: [u8; 16], value: Vec<u8>) -> Result<()> {
        let bytes = (key.len() + value.len()) as u64;
        self.keyspace.insert(key, value)?;
        self.record_write(1, bytes)
    }

    pub(super) fn remove(&self, key: fjall::Slice) -> Result<()> {
        let bytes = key.len() as u64;
        self.keyspace.remove(key)?;
        self.record_write(1, bytes)
    }

    /// Writes entries, all or none.
    pub(super) fn insert_all(
        &self,
        mut batch: OwnedWriteBatch,
        entries: Vec<([u8; 16], Vec<u8>)>,
    ) -> Result<()> {
        let count = entries.len() as u64;
        let mut bytes = 0;
        for (key, value) in entries {
            bytes += (key.len() + value.len()) as u64;
            batch.insert(&self.keyspace, key, value);
        }
        batch.commit()?;
        self.record_write(count, bytes)
    }

    /// Flushes the memtable and compacts all files, which frees the space of removed entries.
    pub(super) fn compact(&self) -> Result<()> {
        self.written.store(0, Ordering::Relaxed);
        self.keyspace.rotate_memtable_and_wait()?;
        Ok(self.keyspace.major_compact()?)
    }

    fn record_write(&self, entries: u64, bytes: u64) -> Result<()> {
        let new = entries * ENTRY_OVERHEAD_BYTES + bytes;
        let before = self.written.fetch_add(new, Ordering::Relaxed);
        // Only the write that crosses the limit requests a flush.
        if before < MEMTABLE_BYTES && before + new >= MEMTABLE_BYTES {
            self.written.store(0, Ordering::Relaxed);
            self.keyspace.rotate_memtable()?;
        }
        Ok(())
    }
}
