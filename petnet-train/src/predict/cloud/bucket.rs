//! Images in S3, Google Cloud Storage and Azure Blob Storage, listed page by page in the order of their keys.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write as _};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{Error, GetOptions, ObjectMeta, ObjectStore, ObjectStoreExt as _};
use petnet::files::{LeftOut, entry_path, left_out};
use tokio::runtime::Runtime;
use url::Url;

use crate::error::UsageError;
use crate::predict::archive::{self, ArchiveKind};
use crate::predict::listing::{ImageBytes, ImageSelector, Load};
use crate::predict::source::{MATCH_OPTIONS, has_wildcard, refuse_large};

/// Bytes of an archive that are fetched in one request.
const BLOCK_BYTES: u64 = 8 << 20;
/// Prefixes of the environment variables that the clouds' own tools read.
const VARIABLE_PREFIXES: [&str; 3] = ["AWS_", "GOOGLE_", "AZURE_"];

/// Lists the images below a prefix, at one key, or at the keys that match a pattern. Archives are read only if a key or a
/// pattern names them.
pub(in crate::predict) fn walk(address: &str, selector: &mut ImageSelector) -> Result<()> {
    let (bucket, key) = Bucket::open(address)?;
    Arc::new(bucket).walk(key, selector).with_context(|| address.to_string())
}

/// Copies the objects below a prefix into a folder, under the same names, or one archive. Objects whose names lead out of
/// the folder are left out.
pub(in crate::predict) fn copy(
    address: &str,
    to: &std::path::Path,
    each: &dyn Fn(),
) -> Result<PathBuf> {
    let (bucket, key) = Bucket::open(address)?;
    bucket.copy(key, to, each).with_context(|| address.to_string())
}

struct Bucket {
    runtime: Runtime,
    store: Box<dyn ObjectStore>,
    /// `s3://photos`
    name: String,
}

/// Reason to leave an object out, by its name only: requests for the first bytes of each object would cost too much.
fn left_out_by_name(key: &str) -> Option<LeftOut> {
    left_out(std::path::Path::new(key), Vec::new)
}

impl Bucket {
    /// Opens the bucket of an address; also returns the rest of the address, the key.
    fn open(address: &str) -> Result<(Self, &str)> {
        let wrong = |e: &dyn std::fmt::Display| UsageError(format!("{address}: {e}"));
        let after_scheme = address.find("://").map_or(0, |at| at + 3);
        let end = address[after_scheme..].find('/').map_or(address.len(), |at| after_scheme + at);
        let (name, key) = address.split_at(end);
        let url = Url::parse(name).map_err(|e| wrong(&e))?;
        let variables = std::env::vars_os().filter_map(|(name, value)| {
            let (name, value) = (name.into_string().ok()?, value.into_string().ok()?);
            VARIABLE_PREFIXES.iter().any(|start| name.starts_with(start)).then_some((name, value))
        });
        // rustls needs one default provider per process; an error means that it is set already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (store, _) = object_store::parse_url_opts(&url, variables).map_err(|e| wrong(&e))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("bucket")
            .enable_all()
            .build()?;
        Ok((Self { runtime, store, name: name.into() }, key.trim_start_matches('/')))
    }

    fn walk(self: &Arc<Self>, key: &str, selector: &mut ImageSelector) -> Result<()> {
        let archive = ArchiveKind::of(key).is_some();
        if has_wildcard(key) {
            return self.matching(key, selector);
        }
        if archive || left_out_by_name(key).is_none() {
            match self.runtime.block_on(self.store.head(&Path::parse(key)?)) {
                Ok(meta) => return self.object(meta, selector),
                // The name of a folder may end like a file's.
                Err(Error::NotFound { .. }) if !archive => {}
                Err(e) => return Err(e.into()),
            }
        }
        self.each(key, |meta| match left_out_by_name(meta.location.as_ref()) {
            None => self.object(meta, selector),
            Some(reason) => {
                selector.leave_out(reason);
                Ok(())
            }
        })
    }

    fn matching(self: &Arc<Self>, key: &str, selector: &mut ImageSelector) -> Result<()> {
        let pattern = glob::Pattern::new(key).map_err(|e| UsageError(e.to_string()))?;
        let first_wildcard = key.find(['*', '?', '[']).unwrap_or(key.len());
        let folder = key[..first_wildcard].rfind('/').map_or("", |at| &key[..at]);
        let mut found = false;
        self.each(folder, |meta| {
            let key = meta.location.as_ref();
            let readable = left_out_by_name(key).is_none() || ArchiveKind::of(key).is_some();
            if readable && pattern.matches_with(key, MATCH_OPTIONS) {
                found = true;
                return self.object(meta, selector);
            }
            Ok(())
        })?;
        if !found {
            bail!("no image or archive matches");
        }
        Ok(())
    }

    fn each(&self, prefix: &str, mut take: impl FnMut(ObjectMeta) -> Result<()>) -> Result<()> {
        let prefix = Path::parse(prefix.trim_end_matches('/'))?;
        let mut objects =
            self.store.list(Some(&prefix).filter(|prefix| !prefix.as_ref().is_empty()));
        while let Some(meta) = self.runtime.block_on(objects.next()) {
            take(meta?)?;
        }
        Ok(())
    }

    fn object(self: &Arc<Self>, meta: ObjectMeta, selector: &mut ImageSelector) -> Result<()> {
        let path = format!("{}/{}", self.name, meta.location);
        match ArchiveKind::of(&path) {
            Some(kind) => archive::walk(kind, ObjectFile::new(self.clone(), meta), &path, selector),
            None => selector.add(&path, || Ok(self.load(meta))),
        }
    }

    fn copy(&self, key: &str, to: &std::path::Path, each: &dyn Fn()) -> Result<PathBuf> {
        if ArchiveKind::of(key).is_some() {
            let file = to.join(key.rsplit('/').next().unwrap_or(key));
            let meta = self.runtime.block_on(self.store.head(&Path::parse(key)?))?;
            if !self.runtime.block_on(self.fetch(&meta.location, &file))? {
                bail!("it was deleted after it was listed");
            }
            each();
            return Ok(file);
        }
        let prefix = Path::parse(key.trim_end_matches('/'))?;
        let mut found = false;
        self.each(key, |meta| {
            let inside = meta.location.as_ref().strip_prefix(prefix.as_ref()).unwrap_or_default();
            // Consoles make empty objects for folders.
            if meta.size == 0 {
                return Ok(());
            }
            if let Err(reason) = refuse_large(meta.size) {
                tracing::warn!(key = %meta.location, "left out: {reason}");
                return Ok(());
            }
            let Some(path) = entry_path(inside) else {
                tracing::warn!(key = %meta.location, "left out: a name that leads out of the folder");
                return Ok(());
            };
            found = true;
            let file = to.join(path);
            fs::create_dir_all(file.parent().unwrap_or(to))?;
            if !self.runtime.block_on(self.fetch(&meta.location, &file))? {
                tracing::warn!(key = %meta.location, "left out: deleted after it was listed");
            }
            each();
            Ok(())
        })?;
        if !found {
            bail!("no object has this prefix");
        }
        Ok(to.to_path_buf())
    }

    /// Streams an object into a file; false where there is no such object.
    async fn fetch(&self, location: &Path, file: &std::path::Path) -> Result<bool> {
        let mut bytes = match self.store.get(location).await {
            Ok(found) => found.into_stream(),
            Err(Error::NotFound { .. }) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let mut to = File::create(file).with_context(|| file.display().to_string())?;
        while let Some(part) = bytes.next().await {
            to.write_all(&part?).with_context(|| file.display().to_string())?;
        }
        Ok(true)
    }

    fn load(self: &Arc<Self>, meta: ObjectMeta) -> Load {
        let bucket = self.clone();
        Box::new(move || bucket.runtime.block_on(bucket.read(&meta)))
    }

    /// Only a deleted object is an error of that image. Any other failure, after the client's retries, would affect many
    /// images, so that the run stops and can be continued later.
    async fn read(&self, meta: &ObjectMeta) -> Result<ImageBytes> {
        if let Err(reason) = refuse_large(meta.size) {
            return Ok(Err(reason));
        }
        let bytes = match self.store.get(&meta.location).await {
            Ok(found) => found.bytes().await,
            Err(error) => Err(error),
        };
        match bytes {
            Ok(bytes) => Ok(Ok(bytes.into())),
            Err(Error::NotFound { .. }) => Ok(Err("it was deleted after it was listed".into())),
            Err(error) => Err(error).with_context(|| format!("{}/{}", self.name, meta.location)),
        }
    }
}

/// An object as a seekable file, which is fetched in blocks of [`BLOCK_BYTES`] bytes.
struct ObjectFile {
    bucket: Arc<Bucket>,
    meta: ObjectMeta,
    position: u64,
    block: Vec<u8>,
    /// Offset of the block in the object.
    start: u64,
}

impl ObjectFile {
    fn new(bucket: Arc<Bucket>, meta: ObjectMeta) -> Self {
        Self { bucket, meta, position: 0, block: Vec::new(), start: 0 }
    }

    fn fetch(&mut self) -> io::Result<()> {
        let start = self.position / BLOCK_BYTES * BLOCK_BYTES;
        let range = start..(start + BLOCK_BYTES).min(self.meta.size);
        // Blocks of an archive that is replaced meanwhile must not be mixed.
        let options = GetOptions {
            range: Some(range.into()),
            if_match: self.meta.e_tag.clone(),
            ..GetOptions::default()
        };
        let store = &self.bucket.store;
        let block = async {
            let found = store.get_opts(&self.meta.location, options).await?;
            found
                .into_stream()
                .try_fold(Vec::new(), async |mut block: Vec<u8>, bytes| {
                    block.extend_from_slice(&bytes);
                    Ok(block)
                })
                .await
        };
        self.block = self.bucket.runtime.block_on(block).map_err(io::Error::other)?;
        self.start = start;
        Ok(())
    }
}

impl Read for ObjectFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.position >= self.meta.size {
            return Ok(0);
        }
        let end = self.start + self.block.len() as u64;
        if !(self.start..end).contains(&self.position) {
            self.fetch()?;
        }
        let rest = self.block.get((self.position - self.start) as usize..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for ObjectFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.meta.size.checked_add_signed(by),
        };
        self.position = position.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.position)
    }
}
