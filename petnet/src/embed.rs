//! Embeddings: the features before the network's linear layers, as a vector of norm 1. Similar images have embeddings with
//! a large cosine; [`similar`](crate::similar) finds them.

use crate::classifier::{Classifier, missing_output};
use crate::error::Result;
use crate::ood;
use crate::prediction::Prediction;
use crate::preprocess::Pixels;
use crate::vector::normalize;

impl Classifier {
    /// Number of values of an embedding: the channels of the last feature map.
    pub fn embedding_len(&self) -> usize {
        ood::features(self.info().ood_graph())
    }

    /// The embedding of each image that [`Classifier::preprocess`] made: the mean of each channel of the last feature
    /// map, divided by the L2 norm of all of them. Where the model has a source head, the maps are the source network's:
    /// fine-tuning narrows features to the model's classes. An embedding has [`Classifier::embedding_len`] values and the
    /// norm 1, so that the cosine of two of them is their dot product; means that are all zero stay zero.
    ///
    /// ```
    /// # #[cfg(feature = "pretrained")] {
    #[doc = include_str!("doc_image.txt")]
    /// let classifier = petnet::Classifier::pretrained()?;
    /// let pixels = classifier.preprocess(&image)?;
    /// let embedding = &classifier.embed(&[pixels])?[0];
    /// let norm = embedding.iter().map(|value| value * value).sum::<f32>().sqrt();
    /// assert!((norm - 1.0).abs() < 1e-5);
    /// # }
    /// # Ok::<(), petnet::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Classifier::classify_pixels`].
    pub fn embed(&self, images: &[Pixels]) -> Result<Vec<Vec<f32>>> {
        let both = self.classify_and_embed(images)?;
        Ok(both.into_iter().map(|(_, embedding)| embedding).collect())
    }

    /// The embedding of an encoded image (JPEG, PNG, WebP, GIF or BMP).
    ///
    /// ```
    /// # #[cfg(feature = "pretrained")] {
    #[doc = include_str!("doc_image.txt")]
    /// let classifier = petnet::Classifier::pretrained()?;
    /// let embedding = classifier.embed_bytes(&image)?;
    /// assert_eq!(embedding.len(), classifier.embedding_len());
    /// # }
    /// # Ok::<(), petnet::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Classifier::classify_bytes`].
    pub fn embed_bytes(&self, bytes: &[u8]) -> Result<Vec<f32>> {
        let pixels = self.preprocess(bytes)?;
        let mut one = self.embed(std::slice::from_ref(&pixels))?;
        one.pop().ok_or_else(missing_output)
    }

    /// [`Classifier::classify_pixels`] and [`Classifier::embed`] in one pass through the network.
    ///
    /// ```
    /// # #[cfg(feature = "pretrained")] {
    #[doc = include_str!("doc_image.txt")]
    /// let classifier = petnet::Classifier::pretrained()?;
    /// let pixels = classifier.preprocess(&image)?;
    /// for (prediction, embedding) in classifier.classify_and_embed(&[pixels])? {
    ///     println!("{prediction}: {embedding:?}");
    /// }
    /// # }
    /// # Ok::<(), petnet::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Classifier::classify_pixels`].
    pub fn classify_and_embed(&self, images: &[Pixels]) -> Result<Vec<(Prediction, Vec<f32>)>> {
        if images.is_empty() {
            return Ok(Vec::new());
        }
        let outputs = self.outputs(self.bytes(images)?)?;
        let both = outputs.iter().map(|outputs| {
            let mut embedding = ood::embedding(outputs).to_vec();
            normalize(&mut embedding);
            (self.prediction(outputs), embedding)
        });
        Ok(both.collect())
    }
}
