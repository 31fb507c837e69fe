//! Models made from others: another calibration, last layer, source head or description.

#[cfg(feature = "train")]
use std::collections::BTreeSet;

use super::{Checkpoint, ModelInfo};
use crate::drift::Reference;
use crate::error::{Error, ModelError, Result};
use crate::graph::{Node, SourceHead, without_prefix};
use crate::ood::Detector;
#[cfg(feature = "train")]
use crate::ood::OutOfDistribution;
use crate::passes;
use crate::quantization::Quantization;
#[cfg(feature = "train")]
use crate::task::Task;
#[cfg(feature = "train")]
use crate::weights::{Weight, Weights};

#[cfg(feature = "train")]
/// Temperature and thresholds of probabilities.
#[derive(Clone)]
pub(crate) struct Confidence {
    pub(crate) task: Task,
    pub(crate) temperature: f32,
    pub(crate) threshold: f32,
}

impl Checkpoint {
    /// The same model with another [`ModelInfo::task`], [`ModelInfo::temperature`], [`ModelInfo::threshold`] and [`ModelInfo::ood`], the
    /// latter with the values that it needs.
    #[cfg(feature = "train")]
    pub(crate) fn with_calibration(
        self,
        Confidence { task, temperature, threshold }: Confidence,
        ood: Option<OutOfDistribution>,
        values: Option<(String, Weight)>,
    ) -> Result<Self> {
        let Self { info, mut weights } = self;
        let old = info.ood.as_ref().and_then(|ood| ood.score.parameters(info.ood_graph()));
        old.into_iter().for_each(|(name, _)| drop(weights.remove(&name)));
        weights.extend(values);
        let info = ModelInfo { task, temperature, threshold, ood, ..info };
        Self::new(info, weights).map_err(|reason| Error::checkpoint("<model>", reason))
    }

    /// The out-of-distribution score, ready to be computed.
    pub(crate) fn detector(&self) -> Result<Option<Detector>> {
        let source = self.info.source.as_ref().map(SourceHead::graph);
        let detector = |ood| Detector::new(ood, source, &self.weights);
        let detector = self.info.ood.as_ref().map(detector).transpose();
        detector.map_err(|reason| Error::checkpoint("<model>", reason))
    }

    /// The same model with another [`ModelInfo::reference`].
    #[must_use]
    pub fn with_reference(self, reference: Option<Reference>) -> Self {
        Self { info: ModelInfo { reference, ..self.info }, ..self }
    }

    /// The same model with another [`ModelInfo::quantization`].
    ///
    /// # Errors
    /// [`Error::Checkpoint`] where it lacks the range of a feature map, or one holds no values.
    pub fn with_quantization(self, quantization: Option<Quantization>) -> Result<Self> {
        self.with_info(|info| info.quantization = quantization)
    }

    /// The network that the source head was part of, as a model of its own, with classes named by their numbers;
    /// `None` where there is no source head.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] where its classes are not those of a model.
    pub fn source_network(&self) -> Result<Option<Self>> {
        let Some(source) = &self.info.source else { return Ok(None) };
        let refused = |reason: ModelError| Error::checkpoint("<source head>", reason);
        let graph = source.source().map_err(|e| refused(e.into()))?;
        let nodes = source.graph().nodes().iter();
        let weights = nodes.flat_map(passes::parameters).filter_map(|(name, _)| {
            self.weights
                .get(&name)
                .map(|weight| (without_prefix(&name).to_string(), weight.clone()))
        });
        let ranges = self.info.quantization.as_ref().map(|quantization| {
            let nodes = source.graph().nodes().iter();
            let range = |node: &Node| {
                let range = quantization.ranges.get(&node.name)?;
                Some((without_prefix(&node.name).to_string(), *range))
            };
            Quantization { ranges: nodes.filter_map(range).collect() }
        });
        let labels = (0..graph.classes()).map(|class| class.to_string()).collect();
        let mut info = ModelInfo::new(graph, labels, self.info.preprocess);
        (info.normalization, info.quantization) = (self.info.normalization, ranges);
        Self::new(info, weights.collect()).map(Some).map_err(refused)
    }

    /// The same model with another last layer.
    #[cfg(feature = "train")]
    pub(crate) fn with_last_layer(self, weight: Weight, bias: Weight) -> Result<Self> {
        let Self { info, mut weights } = self;
        if let Some(last) = info.graph.nodes().last() {
            weights.insert(format!("{}.weight", last.name), weight);
            weights.insert(format!("{}.bias", last.name), bias);
        }
        Self::new(info, weights).map_err(|reason| Error::checkpoint("<model>", reason))
    }

    /// The same model with a changed description, where it still fits the weights.
    pub(crate) fn with_info(self, change: impl FnOnce(&mut ModelInfo)) -> Result<Self> {
        let Self { mut info, weights } = self;
        change(&mut info);
        Self::new(info, weights).map_err(|reason| Error::checkpoint("<model>", reason))
    }

    /// The same model with a source head. Ranges of its feature maps are still to be measured.
    #[cfg(feature = "train")]
    pub(crate) fn with_source(self, source: SourceHead, head: Weights) -> Result<Self> {
        let Self { mut info, mut weights } = self;
        (info.source, info.quantization) = (Some(source), None);
        weights.extend(head);
        Self::new(info, weights).map_err(|reason| Error::checkpoint("<model>", reason))
    }

    /// The same model without its source head.
    #[cfg(feature = "train")]
    pub(crate) fn without_source(&self) -> Result<Self> {
        let mut info = self.info.clone();
        (info.source, info.ood) = (None, None);
        let own = info.graph.nodes().iter().flat_map(passes::parameters);
        let own: BTreeSet<String> = own.map(|(name, _)| name).collect();
        let weights = self.weights.iter().filter(|(name, _)| own.contains(*name));
        let weights = weights.map(|(name, weight)| (name.clone(), weight.clone())).collect();
        Self::new(info, weights).map_err(|reason| Error::checkpoint("<model>", reason))
    }
}
