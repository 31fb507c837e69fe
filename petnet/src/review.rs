//! Review of a data set for likely errors: wrong labels, outliers, duplicates, and blurred, dark or tiny images.
//!
//! Wrong labels are found by confident learning (C. Northcutt, L. Jiang and I. Chuang, "Confident learning: estimating
//! uncertainty in dataset labels", JAIR 70, 2021): each image's probabilities come from a logistic regression on features
//! of a network that was fitted without the image.

use rayon::prelude::*;
use serde::Serialize;

use crate::classifier::Classifier;
use crate::dataset::Dataset;
use crate::error::{Error, Result};
use crate::logistic::{ChosenPenalty, Linear, Samples};
use crate::prediction::softmax;
use crate::preprocess::Pixels;
use crate::similar::Index;

/// Folds of the cross-validation.
const FOLDS: usize = 5;
const SEED: u64 = 42;
/// Images that pass through the network together.
const BATCH_SIZE: usize = 64;
/// Number of nearest images over which the similarity of an image is averaged.
const NEIGHBOURS: usize = 5;
/// Largest number of images that others are compared with, so that the time does not grow with the square of their number.
const MAX_COMPARED_IMAGES: usize = 20_000;

/// An image whose label is likely wrong.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LabelSuspect {
    /// Index into [`Dataset::samples`].
    #[serde(rename = "photo")]
    pub image: usize,
    /// The likelier class, an index into [`Dataset::classes`].
    pub likely: usize,
    /// Out-of-fold probability of the labelled class, from 0 to 1.
    pub given_probability: f32,
    /// Out-of-fold probability of the likelier class, from 0 to 1.
    pub likely_probability: f32,
    /// True where the label passes the test of confident learning for a wrong one: the likelier class is at least as
    /// probable as on average over the images with this label.
    pub confident: bool,
}

/// An image and the value that it is ranked by.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Suspect {
    /// Index into [`Dataset::samples`].
    #[serde(rename = "photo")]
    pub image: usize,
    /// The value that the list is ranked by, see [`Review`].
    pub value: f32,
}

/// The findings. Each list is ranked, with the most suspicious images first.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Review {
    /// Images whose labelled class is not the likeliest, by the ratio of the likelier class's probability to that of the
    /// labelled one.
    pub labels: Vec<LabelSuspect>,
    /// All images by the mean cosine of their features to the five nearest others, least first.
    pub outliers: Vec<Suspect>,
    /// All images by the variance of the Laplacian of the grey values, from 0, least first (J. Pech-Pacheco et al., "Diatom
    /// autofocusing in brightfield microscopy", 2000).
    pub blurred: Vec<Suspect>,
    /// All images by their mean grey value, from 0 to 255, least first.
    pub dark: Vec<Suspect>,
    /// Images by the shorter side of the original in pixels, least first; those of unknown size are left out.
    pub tiny: Vec<Suspect>,
    /// Groups of duplicates, as indices.
    pub duplicates: Vec<Vec<usize>>,
    /// Share of out-of-fold predictions that agree with the labels, from 0 to 1.
    pub agreement: f64,
}

/// Features and statistics of one image.
struct Inspected {
    features: Vec<f32>,
    sharpness: f32,
    brightness: f32,
}

impl Review {
    /// Reviews a data set. Every image passes through the network once; `progress` is called with the number of images
    /// that are done.
    ///
    /// # Errors
    /// [`Error::ImageFile`] for an image that can no longer be read, [`Error::Dataset`] for multi-label data or none.
    pub fn run(
        dataset: &Dataset,
        classifier: &Classifier,
        mut progress: impl FnMut(usize),
    ) -> Result<Self> {
        if dataset.is_multi_label() {
            return Err(Error::Dataset(
                "the data is multi-label: a review needs one label per image".into(),
            ));
        }
        let truth: Vec<usize> =
            dataset.samples().iter().filter_map(|sample| sample.target.class()).collect();
        let mut inspected = Vec::with_capacity(dataset.len());
        let images: Vec<usize> = (0..dataset.len()).collect();
        for batch in images.chunks(BATCH_SIZE) {
            inspected.extend(inspect(dataset, classifier, batch)?);
            progress(inspected.len());
        }
        let width = inspected.first().map(|image| image.features.len());
        let width = width.ok_or_else(|| Error::Dataset("there are no images".into()))?;
        let features: Vec<f32> =
            inspected.iter().flat_map(|image| &image.features).copied().collect();
        let probabilities = out_of_fold(dataset, &truth, &features, width);
        let labels = label_suspects(dataset.classes().len(), &truth, &probabilities);
        let rows = probabilities.iter().zip(&truth);
        let right = rows.filter(|(row, class)| likeliest(row) == **class);
        let ranked = |value: &dyn Fn(usize) -> Option<f32>| {
            let images = 0..dataset.len();
            let mut list: Vec<Suspect> =
                images.filter_map(|image| Some(Suspect { image, value: value(image)? })).collect();
            list.sort_by(|a, b| a.value.total_cmp(&b.value));
            list
        };
        let similarity = similarity(&inspected)?;
        Ok(Self {
            agreement: right.count() as f64 / dataset.len() as f64,
            labels,
            outliers: ranked(&|image| Some(similarity[image])),
            blurred: ranked(&|image| Some(inspected[image].sharpness)),
            dark: ranked(&|image| Some(inspected[image].brightness)),
            tiny: ranked(&|image| {
                dataset.samples()[image].size.map(|(width, height)| width.min(height) as f32)
            }),
            duplicates: dataset.duplicate_groups(),
        })
    }
}

fn inspect(dataset: &Dataset, classifier: &Classifier, images: &[usize]) -> Result<Vec<Inspected>> {
    let read = |image: &usize| {
        classifier.preprocess(&dataset.read(*image)?).map_err(|error| match error {
            Error::Image(source) => {
                Error::ImageFile { path: dataset.samples()[*image].path.clone(), source }
            }
            other => other,
        })
    };
    let pixels = images.par_iter().map(read).collect::<Result<Vec<Pixels>>>()?;
    let outputs = classifier.classify_and_embed(&pixels)?;
    let inspected = pixels.iter().zip(outputs).map(|(pixels, (_, features))| {
        let (sharpness, brightness) = sharpness_and_brightness(pixels);
        Inspected { features, sharpness, brightness }
    });
    Ok(inspected.collect())
}

/// Variance of the Laplacian, and mean, of the grey values.
fn sharpness_and_brightness(pixels: &Pixels) -> (f32, f32) {
    let width = pixels.width() as usize;
    let luma = |rgb: &[u8]| {
        0.299 * f32::from(rgb[0]) + 0.587 * f32::from(rgb[1]) + 0.114 * f32::from(rgb[2])
    };
    let grey: Vec<f32> = pixels.data().chunks_exact(3).map(luma).collect();
    let (mut sum, mut squares, mut count) = (0.0, 0.0, 0.0_f32);
    for row in 1..(pixels.height() as usize).saturating_sub(1) {
        for column in 1..width.saturating_sub(1) {
            let at = row * width + column;
            let around = grey[at - 1] + grey[at + 1] + grey[at - width] + grey[at + width];
            let laplacian = around - 4.0 * grey[at];
            sum += f64::from(laplacian);
            squares += f64::from(laplacian * laplacian);
            count += 1.0;
        }
    }
    let (mean, count) = (sum / f64::from(count.max(1.0)), f64::from(count.max(1.0)));
    let brightness = grey.iter().sum::<f32>() / grey.len().max(1) as f32;
    ((squares / count - mean * mean) as f32, brightness)
}

/// Each image's probabilities by a layer that was fitted without it and its duplicates.
fn out_of_fold(
    dataset: &Dataset,
    targets: &[usize],
    features: &[f32],
    width: usize,
) -> Vec<Vec<f32>> {
    let classes = dataset.classes().len();
    let all = Samples { features, width, targets, classes, class_weights: None };
    let ChosenPenalty { l2, .. } = Linear::choose_penalty(&all, SEED);
    let folds = folds(dataset, targets);
    let layers: Vec<Linear> = (0..FOLDS)
        .into_par_iter()
        .map(|held_out| {
            // `Linear::fit` leaves out rows whose class is not below `classes`.
            let targets: Vec<usize> = targets
                .iter()
                .zip(&folds)
                .map(|(class, fold)| if *fold == held_out { classes } else { *class })
                .collect();
            Linear::fit(&Samples { targets: &targets, ..all }, l2, None)
        })
        .collect();
    let probabilities = |(row, fold): (&[f32], &usize)| softmax(&layers[*fold].logits(row), 1.0);
    features.par_chunks_exact(width).zip(&folds).map(probabilities).collect()
}

/// The fold of each image: classes are spread evenly, duplicates stay together.
fn folds(dataset: &Dataset, truth: &[usize]) -> Vec<usize> {
    let samples = dataset.samples();
    let mut order: Vec<usize> = (0..samples.len()).collect();
    order.sort_by_key(|image| (truth[*image], &samples[*image].sha256));
    let groups = samples.iter().map(|sample| sample.group).max().map_or(0, |last| last + 1);
    let mut of_group = vec![None; groups];
    let mut assigned_groups = 0;
    let mut folds = vec![0; samples.len()];
    for image in order {
        let fold = of_group[samples[image].group].get_or_insert_with(|| {
            assigned_groups += 1;
            assigned_groups % FOLDS
        });
        folds[image] = *fold;
    }
    folds
}

fn likeliest(probabilities: &[f32]) -> usize {
    let all = probabilities.iter().enumerate();
    all.max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(class, _)| class)
}

fn label_suspects(
    classes: usize,
    truth: &[usize],
    probabilities: &[Vec<f32>],
) -> Vec<LabelSuspect> {
    // The threshold of a class is its mean probability over the images with this label.
    let (mut thresholds, mut counts) = (vec![0.0; classes], vec![0.0_f32; classes]);
    for (class, row) in truth.iter().zip(probabilities) {
        thresholds[*class] += row[*class];
        counts[*class] += 1.0;
    }
    thresholds.iter_mut().zip(&counts).for_each(|(sum, count)| *sum /= count.max(1.0));
    let mut suspects: Vec<LabelSuspect> = truth
        .iter()
        .zip(probabilities)
        .enumerate()
        .filter_map(|(image, (class, row))| {
            let likely = likeliest(row);
            (likely != *class).then(|| LabelSuspect {
                image,
                likely,
                given_probability: row[*class],
                likely_probability: row[likely],
                confident: row[likely] >= thresholds[likely],
            })
        })
        .collect();
    // By the ratio of probabilities: the differences of confident predictions would all be close to 1.
    let margin =
        |suspect: &LabelSuspect| suspect.likely_probability.ln() - suspect.given_probability.ln();
    suspects.sort_by(|a, b| margin(b).total_cmp(&margin(a)));
    suspects
}

/// Mean cosine of each image's features to the nearest others.
fn similarity(inspected: &[Inspected]) -> Result<Vec<f32>> {
    let step = inspected.len().div_ceil(MAX_COMPARED_IMAGES).max(1);
    let compared: Vec<usize> = (0..inspected.len()).step_by(step).collect();
    let index = Index::from_rows(
        inspected[0].features.len(),
        compared.iter().map(|image| &inspected[*image].features),
    )?;
    let queries: Vec<&[f32]> = inspected.iter().map(|image| image.features.as_slice()).collect();
    let nearest = index.nearest_all(&queries, NEIGHBOURS + 1)?;
    let mean = |(image, nearest): (usize, Vec<crate::similar::Neighbour>)| {
        let others = nearest.iter().filter(|near| compared[near.row] != image);
        let cosines: Vec<f32> = others.take(NEIGHBOURS).map(|near| near.cosine).collect();
        cosines.iter().sum::<f32>() / cosines.len().max(1) as f32
    };
    Ok(nearest.into_iter().enumerate().map(mean).collect())
}
