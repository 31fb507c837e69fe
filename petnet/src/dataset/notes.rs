//! Notes for users on how raw images were read.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use super::layout::{DetectedLayout, ImageFolders};
use crate::files::{Listing, class_key};

/// Largest number of folders that a note names.
const MAX_NAMED_FOLDERS: usize = 5;

/// Notes for users, one sentence each.
#[derive(Default)]
pub(super) struct Notes(pub(super) Vec<String>);

impl Notes {
    /// Notes the folders at the level of the classes that have no images.
    pub(super) fn folders_without_images(
        &mut self,
        found: &DetectedLayout,
        images: &[PathBuf],
        listing: &Listing,
    ) {
        let level = match found {
            DetectedLayout::Folders | DetectedLayout::SplitsBelow => 0,
            DetectedLayout::SplitsAbove => 1,
            DetectedLayout::Tables(_) | DetectedLayout::Labels | DetectedLayout::Pattern => return,
        };
        let root = ImageFolders::of(images).root;
        let filled: BTreeSet<&Path> = images.iter().flat_map(|image| image.ancestors()).collect();
        let empty: Vec<String> = listing
            .folders
            .iter()
            .filter(|folder| folder.components().count() == root + level + 1)
            .filter(|folder| !filled.contains(folder.as_path()))
            .map(|folder| format!("`{}`", folder.display()))
            .collect();
        if !empty.is_empty() {
            let names = first_names(&empty, MAX_NAMED_FOLDERS);
            self.0.push(format!("no image in {names}: no class of that name"));
        }
    }

    /// Sorted class names (the shortest spelling of each, in lower case), and their index by [`class_key`]. Notes the spellings
    /// that become one class.
    pub(super) fn classes<'a>(
        &mut self,
        spellings: impl Iterator<Item = &'a str>,
    ) -> (Vec<String>, HashMap<String, usize>) {
        let mut by_key: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
        for spelling in spellings {
            by_key.entry(class_key(spelling)).or_default().insert(spelling);
        }
        let mut names = Vec::new();
        for spellings in by_key.values() {
            let lower = spellings.iter().map(|spelling| spelling.trim().to_lowercase());
            let name = lower.min_by_key(|name| (name.len(), name.clone())).unwrap_or_default();
            if spellings.len() > 1 {
                let all: Vec<String> = spellings.iter().map(|one| format!("`{one}`")).collect();
                self.0.push(format!("{} are one class, `{name}`", all.join(" and ")));
            }
            names.push(name);
        }
        let index = by_key.into_keys().enumerate().map(|(number, key)| (key, number)).collect();
        (names, index)
    }
}

/// The first `most` names, and the number of the others.
pub(super) fn first_names(names: &[String], most: usize) -> String {
    let more = names.len().saturating_sub(most);
    let named = names[..names.len().min(most)].join(", ");
    if more > 0 { format!("{named} and {more} others") } else { named }
}
