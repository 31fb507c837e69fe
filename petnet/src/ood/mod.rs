//! Out-of-distribution detection: a score that separates images of other things from images like those of the training,
//! as confidence alone does not: a classifier is often confident on both.
//!
//! There are two scores, both computed from the outputs of one pass through the network:
//! - with a [source head](crate::graph::SourceHead) whose classes are known to contain the model's, the log-odds of all
//!   its other classes against them;
//! - for any classes, the cosine distance to the nearest of some prototypes, the centres of the training images'
//!   features (as in Sun et al., "Out-of-distribution detection with deep nearest neighbors", 2022).

use serde::{Deserialize, Serialize};

mod classes;
#[cfg(feature = "train")]
mod prototypes;

pub use classes::ClassSet;
#[cfg(feature = "train")]
pub(crate) use prototypes::prototypes;

use crate::engine::Outputs;
use crate::error::ModelError;
use crate::graph::{Graph, Op};
use crate::vector::{dot, normalize};
use crate::weights::{Weight, Weights};

/// Name of the prototypes among a model's weights, `[count, features]`.
const PROTOTYPES: &str = "ood.prototypes";

/// Score and threshold by which a model detects out-of-distribution images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OutOfDistribution {
    /// The score; higher is further from the training images.
    pub score: OodScore,
    /// Images of a higher score are out of distribution.
    pub threshold: f32,
}

/// A method to compute an out-of-distribution score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case")]
#[non_exhaustive]
pub enum OodScore {
    /// Log-odds of the source head's other classes against those that contain the model's.
    SourceClasses {
        /// The source head's classes that contain the model's.
        classes: ClassSet,
    },
    /// One minus the cosine of the angle to the nearest prototype.
    Prototypes {
        /// Number of prototypes, which are stored with the weights.
        count: usize,
    },
}

impl OodScore {
    /// Its name in model files.
    pub fn name(&self) -> &'static str {
        match self {
            Self::SourceClasses { .. } => "source_classes",
            Self::Prototypes { .. } => "prototypes",
        }
    }

    /// Name and shape of the values that a model file stores for it.
    pub(crate) fn parameters(&self, graph: &Graph) -> Option<(String, Vec<usize>)> {
        match self {
            Self::SourceClasses { .. } => None,
            Self::Prototypes { count } => {
                Some((PROTOTYPES.to_string(), vec![*count, features(graph)]))
            }
        }
    }

    /// Validates the classes of [`OodScore::SourceClasses`] against those of the source head.
    /// Errors: [`ModelError::OodClasses`] for classes that a source head does not have, or without one.
    pub(crate) fn validate(&self, source: Option<&Graph>) -> Result<(), ModelError> {
        match self {
            Self::Prototypes { .. } => Ok(()),
            Self::SourceClasses { classes } => {
                let known = source.map_or(0, Graph::classes);
                // With all of them there would be no other classes.
                let fits = classes.last().is_some_and(|last| last < known) && classes.len() < known;
                if fits { Ok(()) } else { Err(ModelError::OodClasses(known)) }
            }
        }
    }
}

/// Number of features before a network's head.
pub(crate) fn features(graph: &Graph) -> usize {
    let linear = graph.head().iter().find_map(|node| match node.op {
        Op::Linear { inputs, .. } => Some(inputs),
        _ => None,
    });
    linear.unwrap_or_default()
}

/// A score that is ready to be computed.
#[derive(Debug)]
pub(crate) struct Detector {
    threshold: f32,
    method: Method,
}

#[derive(Debug)]
enum Method {
    /// True for each class of the source head that contains the model's.
    SourceClasses(Vec<bool>),
    /// Unit vectors, one after the other.
    Prototypes { values: Vec<f32>, width: usize },
}

impl Detector {
    /// From a model's weights.
    pub(crate) fn new(
        ood: &OutOfDistribution,
        source: Option<&Graph>,
        weights: &Weights,
    ) -> Result<Self, ModelError> {
        let method = match &ood.score {
            OodScore::SourceClasses { classes } => {
                let count = source.map_or(0, Graph::classes);
                Method::SourceClasses((0..count).map(|class| classes.contains(class)).collect())
            }
            OodScore::Prototypes { .. } => {
                let missing = || ModelError::MissingWeight(PROTOTYPES.into());
                let Weight { shape, values } = weights.get(PROTOTYPES).ok_or_else(missing)?;
                let width = shape.last().copied().unwrap_or(1).max(1);
                let mut values = values.clone();
                // Values of fewer bits are rounded, so that their norms are not exactly 1.
                values.chunks_exact_mut(width).for_each(normalize);
                Method::Prototypes { values, width }
            }
        };
        Ok(Self { threshold: ood.threshold, method })
    }

    /// Higher is further from the training images.
    pub(crate) fn score(&self, outputs: &Outputs) -> f32 {
        match &self.method {
            Method::SourceClasses(known) => {
                let logits = outputs.source.as_ref().map(|source| source.logits.as_slice());
                log_odds(logits.unwrap_or_default(), known)
            }
            Method::Prototypes { values, width } => distance(embedding(outputs), values, *width),
        }
    }

    /// True where a score is in distribution.
    pub(crate) fn accepts(&self, score: f32) -> bool {
        score <= self.threshold
    }
}

/// The features for distances: those of the source head where there is one, as fine-tuning narrows features to the model's
/// own classes.
pub(crate) fn embedding(outputs: &Outputs) -> &[f32] {
    outputs.source.as_ref().map_or(&outputs.features, |source| &source.features)
}

/// Log-sum-exp of the other classes' logits minus that of the known classes' logits.
fn log_odds(logits: &[f32], known: &[bool]) -> f32 {
    let log_sum_exp = |of_known: bool| {
        let own = logits.iter().zip(known).filter(move |(_, known)| **known == of_known);
        let own = own.map(|(logit, _)| *logit);
        let largest = own.clone().fold(f32::NEG_INFINITY, f32::max);
        largest + own.map(|logit| (logit - largest).exp()).sum::<f32>().ln()
    };
    log_sum_exp(false) - log_sum_exp(true)
}

/// Cosine distance to the nearest prototype: 0 for the direction of a prototype, 1 for features orthogonal to all.
fn distance(features: &[f32], prototypes: &[f32], width: usize) -> f32 {
    let length = dot(features, features).sqrt().max(f32::MIN_POSITIVE);
    let products = prototypes.chunks_exact(width).map(|prototype| dot(features, prototype));
    1.0 - products.fold(f32::NEG_INFINITY, f32::max) / length
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outputs(features: &[f32], logits: &[f32]) -> Outputs {
        use crate::engine::SourceOutputs;
        let source = SourceOutputs { logits: logits.to_vec(), features: features.to_vec() };
        Outputs { logits: vec![0.0; 2], features: vec![1.0], source: Some(source) }
    }

    #[test]
    fn log_odds_are_those_of_a_softmax_and_do_not_overflow() {
        let logits = [1.0_f32, -2.0, 0.5, 3.0];
        let known = [false, true, true, false];
        let share = |of_known: bool| -> f32 {
            let pairs = logits.iter().zip(known);
            pairs.filter(|(_, known)| *known == of_known).map(|(logit, _)| logit.exp()).sum()
        };
        assert!((log_odds(&logits, &known) - (share(false) / share(true)).ln()).abs() < 1e-5);
        let score = log_odds(&[-900.0, 900.0], &[true, false]);
        assert_eq!(score, 1800.0);
    }

    #[test]
    fn only_the_direction_of_features_counts_and_zeros_are_far_from_everything() {
        let weights = Weights::from([(
            PROTOTYPES.to_string(),
            Weight { shape: vec![2, 3], values: vec![2.0, 0.0, 0.0, 0.0, 3.0, 3.0] },
        )]);
        let ood = OutOfDistribution { score: OodScore::Prototypes { count: 2 }, threshold: 0.1 };
        let detector = Detector::new(&ood, None, &weights).unwrap();
        let score = |features: &[f32]| detector.score(&outputs(features, &[]));
        assert!(score(&[9.0, 0.0, 0.0]).abs() < 1e-6);
        assert!(score(&[0.0, 0.5, 0.5]).abs() < 1e-6);
        assert!((score(&[0.0, 1.0, 0.0]) - (1.0 - 0.5_f32.sqrt())).abs() < 1e-6);
        assert!((score(&[0.0; 3]) - 1.0).abs() < 1e-6);
        assert!(detector.accepts(0.1) && !detector.accepts(0.11));
    }

    #[test]
    fn classes_that_a_source_head_does_not_have_are_refused() {
        let graph = crate::arch::Architecture::named("simple_cnn").unwrap().graph(10).unwrap();
        let score = |text: &str| OodScore::SourceClasses { classes: text.parse().unwrap() };
        assert_eq!(score("3-5, 9").validate(Some(&graph)), Ok(()));
        assert_eq!(score("3-10").validate(Some(&graph)), Err(ModelError::OodClasses(10)));
        assert_eq!(score("0-9").validate(Some(&graph)), Err(ModelError::OodClasses(10)));
        assert_eq!(score("3").validate(None), Err(ModelError::OodClasses(0)));
        assert_eq!(OodScore::Prototypes { count: 3 }.validate(None), Ok(()));
    }
}
