//! The page: lists of photos, each with what is doubted.

use std::path::Path;

use anyhow::Result;
use petnet::Dataset;
use rayon::prelude::*;
use serde_json::{Value, json};

use crate::encode::{data_url, thumbnail};

const TEMPLATE: &str = include_str!("page.html");

/// A photo in a list.
pub(super) struct Card {
    pub(super) photo: usize,
    /// The likelier class.
    pub(super) likely: Option<usize>,
    pub(super) note: String,
}

pub(super) struct List {
    id: &'static str,
    title: &'static str,
    cards: Vec<Card>,
}

impl List {
    pub(super) fn new(id: &'static str, title: &'static str, cards: Vec<Card>) -> Self {
        Self { id, title, cards }
    }
}

pub(super) struct Page<'a> {
    pub(super) dataset: &'a Dataset,
    pub(super) data: &'a Path,
    pub(super) lists: Vec<List>,
    pub(super) agreement: f64,
}

impl Page<'_> {
    /// `whole` puts the photos into the page, which then needs no server; decisions are downloaded from it.
    pub(super) fn html(&self, whole: bool) -> Result<String> {
        let text = serde_json::to_string(&self.content(whole))?;
        // Names of files may end the script.
        Ok(TEMPLATE.replace("\"CONTENT\"", &text.replace('<', "\\u003c")))
    }

    fn content(&self, whole: bool) -> Value {
        let classes = self.dataset.classes();
        let card = |card: &Card| {
            let sample = &self.dataset.samples()[card.photo];
            let picture = match whole {
                true => self
                    .picture(card.photo)
                    .ok()
                    .and_then(|jpeg| data_url(&jpeg, serde_json::value::Serializer).ok()),
                false => Some(format!("photo/{}", card.photo).into()),
            };
            json!({
                "path": sample.path.display().to_string(), "sha256": sample.sha256,
                "given": self.dataset.class_names(sample).join("|"), "likely": card.likely.map(|class| &classes[class]),
                "note": card.note, "picture": picture,
            })
        };
        let lists = self.lists.iter().map(|list| {
            let cards: Vec<Value> = list.cards.par_iter().map(card).collect();
            json!({ "id": list.id, "title": list.title, "cards": cards })
        });
        json!({
            "data": self.data.display().to_string(), "photos": self.dataset.len(), "classes": classes,
            "agreement": self.agreement, "served": !whole, "lists": lists.collect::<Vec<_>>(),
        })
    }

    /// A small JPEG of a photo.
    pub(super) fn picture(&self, photo: usize) -> Result<Vec<u8>> {
        thumbnail(&self.dataset.read(photo)?)
    }
}
