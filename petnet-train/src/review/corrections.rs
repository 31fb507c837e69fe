//! Decisions of a review as a CSV file that `prepare --labels` reads.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// Decision on an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Correction {
    /// SHA-256 of the image's file.
    pub(super) sha256: String,
    pub(super) path: String,
    /// The corrected class.
    pub(super) label: String,
    pub(super) action: Action,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Action {
    /// The label is right.
    Keep,
    /// The label is replaced.
    Relabel,
    /// The image is not used.
    Drop,
}

/// All decisions so far, and the file that holds them.
pub(super) struct Corrections {
    file: PathBuf,
    by_digest: BTreeMap<String, Correction>,
}

impl Corrections {
    /// Reads the decisions of an earlier review, if there was one.
    pub(super) fn open(file: &Path) -> Result<Self> {
        let mut by_digest = BTreeMap::new();
        if file.is_file() {
            let mut reader = csv::Reader::from_path(file)?;
            for row in reader.deserialize() {
                let row: Correction = row.with_context(|| file.display().to_string())?;
                by_digest.insert(row.sha256.clone(), row);
            }
        }
        Ok(Self { file: file.into(), by_digest })
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Correction> {
        self.by_digest.values()
    }

    /// Sets or, with `None`, removes the decision on an image, and writes the file.
    pub(super) fn decide(&mut self, sha256: &str, decision: Option<Correction>) -> Result<()> {
        // Kept only once the file is written.
        let mut changed = self.by_digest.clone();
        match decision {
            Some(correction) => drop(changed.insert(sha256.into(), correction)),
            None => drop(changed.remove(sha256)),
        }
        // The header is written explicitly, because the writer omits it without rows.
        let mut writer = csv::WriterBuilder::new().has_headers(false).from_writer(Vec::new());
        writer.write_record(["sha256", "path", "label", "action"])?;
        changed.values().try_for_each(|row| writer.serialize(row))?;
        let text = writer.into_inner().map_err(|e| anyhow::anyhow!("{e}"))?;
        crate::files::write(&self.file, &text)?;
        self.by_digest = changed;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_that_could_not_be_written_is_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("corrections.csv");
        let mut corrections = Corrections::open(&file).unwrap();
        let (path, label, action) = ("1.png".into(), "cat".into(), Action::Keep);
        let row = Correction { sha256: "a".into(), path, label, action };
        corrections.decide("a", Some(row.clone())).unwrap();
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir_all(file.join("in the way")).unwrap();
        assert!(corrections.decide("a", None).is_err());
        assert!(corrections.decide("b", Some(Correction { sha256: "b".into(), ..row })).is_err());
        assert_eq!(corrections.all().map(|row| &*row.sha256).collect::<Vec<_>>(), ["a"]);
    }
}
