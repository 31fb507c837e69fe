//! The prediction for one image.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Probabilities that sum to 1.
pub(crate) fn softmax(logits: &[f32], temperature: f32) -> Vec<f32> {
    // Relative to the largest logit, so that no exponential overflows.
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = logits.iter().map(|z| ((z - largest) / temperature).exp()).collect();
    let sum: f32 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

/// Answered, or unsure for a reason. Displays as `answered`, `low_confidence` or `out_of_distribution`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// The prediction is in distribution, and its confidence reaches the threshold.
    Answered,
    /// Unsure: the image is in distribution, but the confidence is below
    /// [`ModelInfo::threshold`](crate::ModelInfo::threshold).
    LowConfidence,
    /// Unsure: the image is not like those of the training. The confidence does not matter.
    OutOfDistribution,
}

impl Decision {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Answered, Self::LowConfidence, Self::OutOfDistribution];

    /// Its name in snake case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::LowConfidence => "low_confidence",
            Self::OutOfDistribution => "out_of_distribution",
        }
    }

    /// The reason as a sentence for end users of a model of these classes; `None` for [`Decision::Answered`].
    ///
    /// ```
    /// use petnet::Decision;
    ///
    /// let labels = ["cat".to_string(), "dog".to_string()];
    /// let reason = Decision::OutOfDistribution.reason(&labels).expect("unsure");
    /// assert_eq!(reason, "This does not look like a cat or a dog.");
    /// assert_eq!(Decision::Answered.reason(&labels), None);
    /// ```
    pub fn reason(self, labels: &[String]) -> Option<String> {
        match self {
            Self::Answered => None,
            Self::LowConfidence => Some("The confidence is too low for a decision.".into()),
            Self::OutOfDistribution => Some(format!("This does not look like {}.", any_of(labels))),
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A list of classes such as `a cat or a dog`, or their number where there are many.
fn any_of(labels: &[String]) -> String {
    /// Most classes that a sentence can list.
    const MAX_LISTED_CLASSES: usize = 4;
    let article = |label: &String| {
        let vowel = label.starts_with(['a', 'e', 'i', 'o', 'u', 'A', 'E', 'I', 'O', 'U']);
        format!("{} {label}", if vowel { "an" } else { "a" })
    };
    match labels {
        [] => "anything that the model knows".into(),
        [only] => article(only),
        [first @ .., last] if labels.len() <= MAX_LISTED_CLASSES => {
            let first: Vec<String> = first.iter().map(article).collect();
            format!("{} or {}", first.join(", "), article(last))
        }
        _ => format!("any of the {} classes that the model knows", labels.len()),
    }
}

/// The prediction for one image. Displays as `dog (98 %)`, for a multi-label model as `cat (97 %), dog (91 %)` or
/// `none of the classes`.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    pub(crate) label: String,
    pub(crate) index: usize,
    pub(crate) probabilities: Vec<f32>,
    /// The predicted classes of a multi-label model, likeliest first: indices and names.
    pub(crate) classes: Option<(Vec<usize>, Vec<String>)>,
    pub(crate) ood_score: Option<f32>,
    pub(crate) decision: Decision,
}

impl Prediction {
    #[cfg(test)]
    pub(crate) fn new(label: String, index: usize, probabilities: Vec<f32>) -> Self {
        let decision = Decision::Answered;
        Self { label, index, probabilities, classes: None, ood_score: None, decision }
    }

    /// Name of the likeliest class. In a multi-label model it may be below its threshold.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Index of the likeliest class among [`Classifier::labels`](crate::Classifier::labels).
    pub fn index(&self) -> usize {
        self.index
    }

    /// Probability of the likeliest class, 0 to 1.
    pub fn confidence(&self) -> f32 {
        self.probabilities[self.index]
    }

    /// Out-of-distribution score, higher for images that are less like those of the training, see
    /// [`OodScore`](crate::OodScore); absent where the model was not calibrated.
    pub fn ood_score(&self) -> Option<f32> {
        self.ood_score
    }

    /// Answered, or unsure for a reason.
    pub fn decision(&self) -> Decision {
        self.decision
    }

    /// True for [`Decision::Answered`].
    pub fn is_answered(&self) -> bool {
        self.decision == Decision::Answered
    }

    /// The predicted classes of a multi-label model, whose probabilities reach their thresholds: names and probabilities,
    /// likeliest first, possibly none. `None` for a single-label model. See [`Task`](crate::Task).
    pub fn labels(&self) -> Option<Vec<(&str, f32)>> {
        let (indices, names) = self.classes.as_ref()?;
        let pairs = indices.iter().zip(names);
        Some(pairs.map(|(index, name)| (name.as_str(), self.probabilities[*index])).collect())
    }

    /// Indices of [`Prediction::labels`] among [`Classifier::labels`](crate::Classifier::labels), likeliest first.
    pub fn indices(&self) -> Option<&[usize]> {
        self.classes.as_ref().map(|(indices, _)| indices.as_slice())
    }

    /// The prediction in the form of tables of labels: the likeliest class, or all predicted classes of a multi-label
    /// model, in the model's order, as in `cat|dog`; empty where there are none.
    pub fn label_text(&self) -> String {
        let Some((indices, names)) = &self.classes else { return self.label.clone() };
        let mut classes: Vec<(&usize, &String)> = indices.iter().zip(names).collect();
        classes.sort();
        classes.iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>().join("|")
    }

    /// One probability per class; they sum to 1 unless the model is a multi-label one, see [`Task`](crate::Task).
    pub fn probabilities(&self) -> &[f32] {
        &self.probabilities
    }
}

impl fmt::Display for Prediction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Rounded down, so that only a probability of 1 is shown as 100 %.
        let one = |(label, probability): &(&str, f32)| {
            format!("{label} ({:.0} %)", (probability * 100.0).floor())
        };
        let labels = self.labels().unwrap_or_else(|| vec![(&self.label, self.confidence())]);
        match labels.as_slice() {
            [] => f.write_str("none of the classes"),
            labels => f.write_str(&labels.iter().map(one).collect::<Vec<_>>().join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_name_few_classes_and_count_many() {
        let labels = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
        assert_eq!(any_of(&labels(&["ant"])), "an ant");
        assert_eq!(any_of(&labels(&["cat", "dog", "eel"])), "a cat, a dog or an eel");
        let many = any_of(&labels(&["a", "b", "c", "d", "e"]));
        assert_eq!(many, "any of the 5 classes that the model knows");
    }
}
