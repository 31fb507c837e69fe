//! Likely faults of a data set: labels, images of other things, duplicates, and images on which little is to be seen.
//!
//! Labels are judged by confident learning (C. Northcutt, L. Jiang and I. Chuang, "Confident learning: estimating
//! uncertainty in dataset labels", JAIR 70, 2021): each image's probabilities come from a logistic regression that was fitted
//! without it, on features of a network.

use rayon::prelude::*;
use serde::Serialize;

use crate::classifier::Classifier;
use crate::dataset::Dataset;
use crate::error::{Error, Result};
use crate::logistic::{Choice, Linear, Samples};
use crate::prediction::softmax;
use crate::preprocess::Pixels;
use crate::similar::Index;

/// Parts that take turns at being held out.
const FOLDS: usize = 5;
const SEED: u64 = 42;
/// Images that pass through the network together.
const BATCH: usize = 64;
/// Nearest images whose mean similarity tells how common an image is.
const NEIGHBOURS: usize = 5;
/// Most images that others are compared with, so that the time does not grow with the square of their number.
const COMPARED: usize = 20_000;

/// An image whose label is likely wrong.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LabelSuspect {
    /// Index into [`Dataset::samples`].
    pub photo: usize,
    /// The likelier class, an index into [`Dataset::classes`].
    pub likely: usize,
    /// Out-of-fold probability of the given class, from 0 to 1.
    pub given_probability: f32,
    /// That of the likelier class.
    pub likely_probability: f32,
    /// Set where it passes the test of confident learning: the likelier class is at least as probable as it is on average for
    /// images that are labelled so.
    pub confident: bool,
}

/// An image and how far it stands out; the first ones stand out most.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Suspect {
    /// Index into [`Dataset::samples`].
    pub photo: usize,
    /// The value that it is ranked by, as the list says.
    pub value: f32,
}

/// The findings; each list has its most suspicious images first, and all images.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Review {
    /// By the ratio of the likelier class's probability to the given one's; images whose given class is the likeliest are left out.
    pub labels: Vec<LabelSuspect>,
    /// Images that are like no others: mean cosine of their features to the five nearest, least first.
    pub outliers: Vec<Suspect>,
    /// Variance of the Laplacian of the grey values, from 0, least first (J. Pech-Pacheco et al., "Diatom
    /// autofocusing in brightfield microscopy", 2000).
    pub blurred: Vec<Suspect>,
    /// Mean grey value, from 0 to 255, least first.
    pub dark: Vec<Suspect>,
    /// Shorter side of the original in pixels, least first; images of unknown size are left out.
    pub tiny: Vec<Suspect>,
    /// Images that show the same thing, groups of indices.
    pub duplicates: Vec<Vec<usize>>,
    /// Share of out-of-fold answers that agree with the labels, from 0 to 1.
    pub agreement: f64,
}

/// One image as it was looked at.
struct Looked {
    features: Vec<f32>,
    sharpness: f32,
    light: f32,
}

impl Review {
    /// Looks at every image once; `progress` is called with the number of images that are done.
    ///
    /// # Errors
    /// [`Error::ImageFile`] for an image that cannot be read any more, [`Error::Dataset`] for a data set without images.
    pub fn run(
        dataset: &Dataset,
        classifier: &Classifier,
        mut progress: impl FnMut(usize),
    ) -> Result<Self> {
        if dataset.is_multi_label() {
            return Err(Error::Dataset(
                "it is multi-label: a review compares one label a photo".into(),
            ));
        }
        let truth: Vec<usize> =
            dataset.samples().iter().filter_map(|sample| sample.target.class()).collect();
        let mut looked = Vec::with_capacity(dataset.len());
        let places: Vec<usize> = (0..dataset.len()).collect();
        for batch in places.chunks(BATCH) {
            looked.extend(look(dataset, classifier, batch)?);
            progress(looked.len());
        }
        let width = looked.first().map(|photo| photo.features.len());
        let width = width.ok_or_else(|| Error::Dataset("there are no photos".into()))?;
        let features: Vec<f32> = looked.iter().flat_map(|photo| &photo.features).copied().collect();
        let probabilities = out_of_fold((dataset, &truth), &features, width);
        let labels = label_suspects(dataset.classes().len(), &truth, &probabilities);
        let answers = probabilities.iter().zip(&truth);
        let right = answers.filter(|(answer, class)| likeliest(answer) == **class);
        let ranked = |value: &dyn Fn(usize) -> Option<f32>| {
            let photos = 0..dataset.len();
            let mut list: Vec<Suspect> =
                photos.filter_map(|photo| Some(Suspect { photo, value: value(photo)? })).collect();
            list.sort_by(|a, b| a.value.total_cmp(&b.value));
            list
        };
        let common = similarity(&looked)?;
        Ok(Self {
            agreement: right.count() as f64 / dataset.len() as f64,
            labels,
            outliers: ranked(&|photo| Some(common[photo])),
            blurred: ranked(&|photo| Some(looked[photo].sharpness)),
            dark: ranked(&|photo| Some(looked[photo].light)),
            tiny: ranked(&|photo| {
                dataset.samples()[photo].size.map(|(width, height)| width.min(height) as f32)
            }),
            duplicates: dataset.duplicate_groups(),
        })
    }
}

fn look(dataset: &Dataset, classifier: &Classifier, photos: &[usize]) -> Result<Vec<Looked>> {
    let read = |photo: &usize| {
        classifier.preprocess(&dataset.read(*photo)?).map_err(|error| match error {
            Error::Image(source) => {
                Error::ImageFile { path: dataset.samples()[*photo].path.clone(), source }
            }
            other => other,
        })
    };
    let pixels = photos.par_iter().map(read).collect::<Result<Vec<Pixels>>>()?;
    let answers = classifier.classify_and_embed(&pixels)?;
    let seen = pixels.iter().zip(answers).map(|(pixels, (_, features))| {
        let (sharpness, light) = sharpness_and_light(pixels);
        Looked { features, sharpness, light }
    });
    Ok(seen.collect())
}

/// Variance of the Laplacian, and mean, of the grey values.
fn sharpness_and_light(pixels: &Pixels) -> (f32, f32) {
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
            let curve = around - 4.0 * grey[at];
            sum += f64::from(curve);
            squares += f64::from(curve * curve);
            count += 1.0;
        }
    }
    let (mean, count) = (sum / f64::from(count.max(1.0)), f64::from(count.max(1.0)));
    let light = grey.iter().sum::<f32>() / grey.len().max(1) as f32;
    ((squares / count - mean * mean) as f32, light)
}

/// Each image's probabilities by a layer that was fitted without it and its duplicates.
fn out_of_fold(
    (dataset, targets): (&Dataset, &[usize]),
    features: &[f32],
    width: usize,
) -> Vec<Vec<f32>> {
    let classes = dataset.classes().len();
    let all = Samples { features, width, targets, classes, class_weights: None };
    let Choice { l2, .. } = Linear::choose_penalty(&all, SEED);
    let folds = folds(dataset, targets);
    let layers: Vec<Linear> = (0..FOLDS)
        .into_par_iter()
        .map(|held_out| {
            // Rows of no class are left out.
            let targets: Vec<usize> = targets
                .iter()
                .zip(&folds)
                .map(|(class, fold)| if *fold == held_out { classes } else { *class })
                .collect();
            Linear::fit(&Samples { targets: &targets, ..all }, l2, None)
        })
        .collect();
    let answer = |(row, fold): (&[f32], &usize)| {
        let Linear { weights, bias } = &layers[*fold];
        let mut logits = bias.clone();
        for (value, weights) in row.iter().zip(weights.chunks_exact(classes)) {
            logits.iter_mut().zip(weights).for_each(|(logit, weight)| *logit += value * weight);
        }
        softmax(&logits, 1.0)
    };
    features.par_chunks_exact(width).zip(&folds).map(answer).collect()
}

/// The fold of each image: classes are spread evenly, duplicates stay together.
fn folds(dataset: &Dataset, truth: &[usize]) -> Vec<usize> {
    let samples = dataset.samples();
    let mut order: Vec<usize> = (0..samples.len()).collect();
    order.sort_by_key(|photo| (truth[*photo], &samples[*photo].sha256));
    let groups = samples.iter().map(|sample| sample.group).max().map_or(0, |last| last + 1);
    let mut of_group = vec![None; groups];
    let mut next = 0;
    let mut folds = vec![0; samples.len()];
    for photo in order {
        let fold = of_group[samples[photo].group].get_or_insert_with(|| {
            next += 1;
            next % FOLDS
        });
        folds[photo] = *fold;
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
    // Mean probability of a class among the images that are labelled so.
    let (mut usual, mut counts) = (vec![0.0; classes], vec![0.0_f32; classes]);
    for (class, answer) in truth.iter().zip(probabilities) {
        usual[*class] += answer[*class];
        counts[*class] += 1.0;
    }
    usual.iter_mut().zip(&counts).for_each(|(sum, count)| *sum /= count.max(1.0));
    let mut suspects: Vec<LabelSuspect> = truth
        .iter()
        .zip(probabilities)
        .enumerate()
        .filter_map(|(photo, (class, answer))| {
            let likely = likeliest(answer);
            (likely != *class).then(|| LabelSuspect {
                photo,
                likely,
                given_probability: answer[*class],
                likely_probability: answer[likely],
                confident: answer[likely] >= usual[likely],
            })
        })
        .collect();
    // Differences of sure answers would all be 1.
    let margin =
        |suspect: &LabelSuspect| suspect.likely_probability.ln() - suspect.given_probability.ln();
    suspects.sort_by(|a, b| margin(b).total_cmp(&margin(a)));
    suspects
}

/// Mean cosine of each image's features to the nearest others.
fn similarity(looked: &[Looked]) -> Result<Vec<f32>> {
    let step = looked.len().div_ceil(COMPARED).max(1);
    let compared: Vec<usize> = (0..looked.len()).step_by(step).collect();
    let index = Index::from_rows(
        looked[0].features.len(),
        compared.iter().map(|photo| &looked[*photo].features),
    )?;
    let queries: Vec<&[f32]> = looked.iter().map(|photo| photo.features.as_slice()).collect();
    let nearest = index.nearest_all(&queries, NEIGHBOURS + 1)?;
    let mean = |(photo, nearest): (usize, Vec<crate::similar::Neighbour>)| {
        let others = nearest.iter().filter(|near| compared[near.row] != photo);
        let cosines: Vec<f32> = others.take(NEIGHBOURS).map(|near| near.cosine).collect();
        cosines.iter().sum::<f32>() / cosines.len().max(1) as f32
    };
    Ok(nearest.into_iter().enumerate().map(mean).collect())
}
