//! Comparison of two models' predictions, in bounded memory.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::SystemTime;

use petnet::Prediction;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::models::Model;

/// Number of the largest differences that are kept.
const MAX_DIFFERENCES: usize = 20;
/// Number of predictions of both models that are kept for later user feedback.
const MAX_PREDICTIONS: usize = 10_000;

/// One model's prediction.
#[derive(Debug, Clone)]
struct ModelPrediction {
    /// Version of the model.
    version: String,
    label: String,
    /// The label as metrics name it.
    class: String,
    confidence: f32,
    decision: &'static str,
}

impl ModelPrediction {
    fn new(model: &Model, prediction: &Prediction) -> Self {
        Self {
            version: model.version.clone(),
            label: prediction.label_text(),
            class: model.class(prediction.index()),
            confidence: prediction.confidence(),
            decision: prediction.decision().name(),
        }
    }

    fn json(&self) -> Value {
        let Self { label, confidence, decision, .. } = self;
        json!({ "label": label, "confidence": confidence, "decision": decision })
    }
}

/// Both models' predictions for one image.
#[derive(Debug, Clone)]
pub(super) struct Pair {
    champion: ModelPrediction,
    shadow: ModelPrediction,
    /// From 0 (equal) to 1, see [`distance`].
    pub(super) difference: f64,
}

impl Pair {
    pub(super) fn new(champion: (&Model, &Prediction), shadow: (&Model, &Prediction)) -> Self {
        let difference = distance(champion, shadow);
        let [champion, shadow] =
            [champion, shadow].map(|(model, prediction)| ModelPrediction::new(model, prediction));
        Self { champion, shadow, difference }
    }

    /// True where both predict the same label, or the same set of labels.
    pub(super) fn agree(&self) -> bool {
        self.champion.label == self.shadow.label
    }

    /// Both classes, as metrics name them.
    pub(super) fn classes(&self) -> [String; 2] {
        [self.champion.class.clone(), self.shadow.class.clone()]
    }
}

/// The total variation distance of two predictions, from 0 to 1: half the sum of the absolute differences of their classes'
/// probabilities, where a class that a model does not have counts as 0. For multi-label models, the largest difference.
fn distance(champion: (&Model, &Prediction), shadow: (&Model, &Prediction)) -> f64 {
    let [first, second] = [champion, shadow].map(|(model, prediction)| {
        let probabilities = prediction.probabilities().iter().copied();
        model.classifier.labels().iter().zip(probabilities).collect::<BTreeMap<_, _>>()
    });
    let labels = first.keys().chain(second.keys().filter(|label| !first.contains_key(*label)));
    let differences = labels.map(|label| {
        let [a, b] = [&first, &second].map(|of| of.get(label).copied().unwrap_or(0.0));
        f64::from((a - b).abs())
    });
    if champion.1.labels().is_some() {
        differences.fold(0.0, f64::max)
    } else {
        (differences.sum::<f64>() / 2.0).min(1.0)
    }
}

/// Agreement, differences and user feedback of two models. Another version of either model resets the comparison.
pub(super) struct Comparison {
    since: SystemTime,
    versions: Option<[String; 2]>,
    results: BTreeMap<&'static str, u64>,
    /// Number of images by the classes of the champion and the shadow.
    classes: BTreeMap<[String; 2], u64>,
    decisions: BTreeMap<[&'static str; 2], u64>,
    /// The largest differences, in descending order.
    differences: Vec<(Uuid, Pair)>,
    /// Labels of both models, until user feedback arrives.
    labels: HashMap<Uuid, [String; 2]>,
    /// Keys of `labels`, the oldest first.
    label_ids: VecDeque<Uuid>,
    /// Number of images with user feedback: both models right, only the champion, only the shadow, neither.
    feedback: [u64; 4],
}

impl Default for Comparison {
    fn default() -> Self {
        Self {
            since: SystemTime::now(),
            versions: None,
            results: BTreeMap::new(),
            classes: BTreeMap::new(),
            decisions: BTreeMap::new(),
            differences: Vec::new(),
            labels: HashMap::new(),
            label_ids: VecDeque::new(),
            feedback: [0; 4],
        }
    }
}

impl Comparison {
    pub(super) fn count(&mut self, result: &'static str) {
        *self.results.entry(result).or_default() += 1;
    }

    pub(super) fn insert(&mut self, id: Uuid, pair: Pair) {
        let versions = [pair.champion.version.clone(), pair.shadow.version.clone()];
        if self.versions.as_ref().is_some_and(|known| *known != versions) {
            *self = Self::default();
            self.count(if pair.agree() { "agreed" } else { "disagreed" });
        }
        self.versions = Some(versions);
        *self.classes.entry(pair.classes()).or_default() += 1;
        let decisions = [pair.champion.decision, pair.shadow.decision];
        *self.decisions.entry(decisions).or_default() += 1;
        let labels = [pair.champion.label.clone(), pair.shadow.label.clone()];
        self.labels.insert(id, labels);
        self.label_ids.push_back(id);
        if self.label_ids.len() > MAX_PREDICTIONS
            && let Some(oldest) = self.label_ids.pop_front()
        {
            self.labels.remove(&oldest);
        }
        let index =
            self.differences.partition_point(|(_, other)| other.difference >= pair.difference);
        if index < MAX_DIFFERENCES && pair.difference > 0.0 {
            self.differences.insert(index, (id, pair));
            self.differences.truncate(MAX_DIFFERENCES);
        }
    }

    /// Records user feedback on an image that both models have classified, and returns for each model if it was right; `None`
    /// for an unknown image, and for further feedback on the same image.
    pub(super) fn evaluate(&mut self, id: Uuid, actual: &str) -> Option<[(&'static str, bool); 2]> {
        let [champion, shadow] = self.labels.remove(&id)?.map(|label| label == actual);
        let index = usize::from(!champion) * 2 + usize::from(!shadow);
        self.feedback[index] += 1;
        Some([("champion", champion), ("shadow", shadow)])
    }

    /// The JSON of `/shadow`, which calls images `photos` as the metrics do.
    pub(super) fn json(&self, champion: &str, (shadow, share): (&str, f64)) -> Value {
        let result = |name: &str| self.results.get(name).copied().unwrap_or(0);
        let compared = result("agreed") + result("disagreed");
        let version = |index: usize| self.versions.as_ref().map(|versions| versions[index].clone());
        let [both, first, second, neither] = self.feedback;
        let classes = self.classes.iter().map(|([champion, shadow], count)| {
            json!({ "champion": champion, "shadow": shadow, "photos": count })
        });
        let decisions = self.decisions.iter().map(|([champion, shadow], count)| {
            json!({ "champion": champion, "shadow": shadow, "photos": count })
        });
        let differences = self.differences.iter().map(|(id, pair)| {
            json!({
                "prediction_id": id,
                "difference": pair.difference,
                "champion": pair.champion.json(),
                "shadow": pair.shadow.json(),
            })
        });
        json!({
            "champion": { "name": champion, "version": version(0) },
            "shadow": { "name": shadow, "version": version(1) },
            "share": share,
            "since": humantime::format_rfc3339_seconds(self.since).to_string(),
            "photos": compared,
            "agreement": (compared > 0).then(|| result("agreed") as f64 / compared as f64),
            "skipped": result("skipped"),
            "failed": result("failed"),
            "classes": classes.collect::<Vec<_>>(),
            "decisions": decisions.collect::<Vec<_>>(),
            "feedback": {
                "both_right": both,
                "only_champion_right": first,
                "only_shadow_right": second,
                "neither_right": neither,
            },
            "differences": differences.collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(labels: [&str; 2], versions: [&str; 2], difference: f64) -> Pair {
        let [champion, shadow] = [0, 1].map(|index| ModelPrediction {
            version: versions[index].into(),
            label: labels[index].into(),
            class: labels[index].into(),
            confidence: 0.9,
            decision: "answered",
        });
        Pair { champion, shadow, difference }
    }

    #[test]
    fn the_largest_differences_are_kept_and_feedback_evaluates_both_models() {
        let mut comparison = Comparison::default();
        let ids: Vec<Uuid> = (0..30).map(Uuid::from_u128).collect();
        for (number, id) in ids.iter().enumerate() {
            let labels = if number % 3 == 0 { ["cat", "dog"] } else { ["cat", "cat"] };
            let pair = pair(labels, ["1", "2"], number as f64 / 30.0);
            comparison.count(if pair.agree() { "agreed" } else { "disagreed" });
            comparison.insert(*id, pair);
        }
        let kept: Vec<_> = comparison.differences.iter().map(|(id, _)| *id).collect();
        assert_eq!(kept, ids.iter().rev().take(MAX_DIFFERENCES).copied().collect::<Vec<_>>());
        assert_eq!(
            comparison.evaluate(ids[0], "cat"),
            Some([("champion", true), ("shadow", false)])
        );
        assert_eq!(comparison.evaluate(ids[0], "cat"), None, "only the first feedback counts");
        assert_eq!(
            comparison.evaluate(ids[3], "dog"),
            Some([("champion", false), ("shadow", true)])
        );
        let json = comparison.json("a", ("b", 0.5));
        assert_eq!((&json["photos"], &json["agreement"]), (&json!(30), &json!(20.0 / 30.0)));
        assert_eq!(json["feedback"]["only_champion_right"], 1);
        assert_eq!(json["feedback"]["only_shadow_right"], 1);
        comparison.insert(ids[1], pair(["cat", "cat"], ["1", "3"], 0.1));
        assert_eq!(
            comparison.json("a", ("b", 0.5))["photos"],
            1,
            "another version resets the comparison"
        );
    }
}
