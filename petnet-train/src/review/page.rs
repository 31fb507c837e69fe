//! The HTML page: lists of images, each with the reason why it is listed.

use std::path::Path;

use anyhow::Result;
use petnet::Dataset;
use rayon::prelude::*;
use serde_json::{Value, json};

use crate::encode::{data_url, thumbnail};

const TEMPLATE: &str = include_str!("page.html");

/// An image in a list.
pub(super) struct Card {
    pub(super) image: usize,
    /// The predicted class, where it differs from the label.
    pub(super) likely: Option<usize>,
    pub(super) note: String,
}

pub(super) struct List {
    pub(super) id: &'static str,
    pub(super) title: &'static str,
    pub(super) cards: Vec<Card>,
}

pub(super) struct Page<'a> {
    pub(super) dataset: &'a Dataset,
    pub(super) data: &'a Path,
    pub(super) lists: Vec<List>,
    pub(super) agreement: f64,
}

impl Page<'_> {
    /// With `whole`, the page contains the images and needs no server; decisions are downloaded from it.
    pub(super) fn html(&self, whole: bool) -> Result<String> {
        let text = serde_json::to_string(&self.content(whole))?;
        // File names must not end the script element.
        Ok(TEMPLATE.replace("\"CONTENT\"", &text.replace('<', "\\u003c")))
    }

    fn content(&self, whole: bool) -> Value {
        let classes = self.dataset.classes();
        let card = |card: &Card| {
            let sample = &self.dataset.samples()[card.image];
            let image = match whole {
                true => self
                    .thumbnail(card.image)
                    .ok()
                    .and_then(|jpeg| data_url(&jpeg, serde_json::value::Serializer).ok()),
                false => Some(format!("image/{}", card.image).into()),
            };
            json!({
                "path": sample.path.display().to_string(), "sha256": sample.sha256,
                "given": self.dataset.class_names(sample).join("|"), "likely": card.likely.map(|class| &classes[class]),
                "note": card.note, "image": image,
            })
        };
        let lists = self.lists.iter().map(|list| {
            let cards: Vec<Value> = list.cards.par_iter().map(card).collect();
            json!({ "id": list.id, "title": list.title, "cards": cards })
        });
        json!({
            "data": self.data.display().to_string(), "images": self.dataset.len(), "classes": classes,
            "agreement": self.agreement, "served": !whole, "lists": lists.collect::<Vec<_>>(),
        })
    }

    /// Thumbnail of an image as JPEG.
    pub(super) fn thumbnail(&self, image: usize) -> Result<Vec<u8>> {
        thumbnail(&self.dataset.read(image)?)
    }
}
