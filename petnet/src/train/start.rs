//! The weights that a training starts from: petnet's or PyTorch's, of another number of classes or not.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use super::trunk::Trunk;
use super::{Freeze, Trainer};
use crate::checkpoint::{Checkpoint, ModelInfo};
use crate::dataset::Dataset;
use crate::error::{Error, ModelError, Result};
use crate::graph::{Graph, SourceHead, renamed};
use crate::nn::{Network, weights};
use crate::passes;
use crate::pytorch;
use crate::weights::{Weight, Weights};

/// The weights that a training starts from; written `none`, `pretrained` or as a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Start {
    /// Random numbers.
    Random,
    /// The bundled model's, or for other classes those of ImageNet that it holds beside its own.
    Pretrained,
    /// A model file of petnet's, or PyTorch's as [`pytorch`](crate::pytorch) knows them.
    File(PathBuf),
}

impl From<String> for Start {
    fn from(text: String) -> Self {
        match text.as_str() {
            "none" => Self::Random,
            "pretrained" => Self::Pretrained,
            path => Self::File(path.into()),
        }
    }
}

impl From<Start> for String {
    fn from(start: Start) -> Self {
        match start {
            Start::Random => "none".into(),
            Start::Pretrained => "pretrained".into(),
            Start::File(path) => path.display().to_string(),
        }
    }
}

/// Weights to start from.
#[derive(Debug, Clone)]
pub(super) struct Given {
    /// The model whose network is trained on, without a source head.
    pub(super) model: Checkpoint,
    /// A network on the same trunk for a source head, and the number of nodes that they share at least; the model
    /// itself where its classes are others than those of the training.
    source: Option<(Checkpoint, usize)>,
    path: PathBuf,
}

impl Given {
    /// Reads the weights for a training of a network on some classes; `None` for random numbers. A training that names no
    /// start takes the bundled model's weights where the network is the same.
    pub(super) fn read(
        start: Option<&Start>,
        graph: &Graph,
        classes: &[String],
    ) -> Result<Option<Self>> {
        let (model, path) = match start {
            Some(Start::Random) => return Ok(None),
            Some(Start::Pretrained) => (bundled()?, PathBuf::from("<pretrained>")),
            Some(Start::File(path)) => (read(path)?, path.clone()),
            None => match bundled().ok().filter(|model| fits(&model.info().graph, graph)) {
                Some(model) => (model, PathBuf::from("<pretrained>")),
                None => return Ok(None),
            },
        };
        Self::new(model, classes, path).map(Some)
    }

    fn new(model: Checkpoint, classes: &[String], path: PathBuf) -> Result<Self> {
        let least = model.info().source.as_ref().map(SourceHead::shared);
        let source = model.source_network()?.zip(least);
        let known = model.info().labels == classes;
        let (model, source) = match source {
            Some((source, _)) if !known => (source.clone(), Some((source, 0))),
            source if known => (model.without_source()?, source),
            _ => (model.clone(), Some((model, 0))),
        };
        Ok(Self { model, source, path })
    }

    /// The weights for a network's layers. A last layer for other classes, and a head of other layers, are left out.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] where the network is another one.
    pub(super) fn weights(&self, ours: &Graph, classes: &[String]) -> Result<Weights> {
        let theirs = &self.model.info().graph;
        if !fits(theirs, ours) {
            let (found, expected) = (theirs.name().into(), ours.name().into());
            let reason = ModelError::OtherNetwork { found, expected };
            return Err(Error::checkpoint(&self.path, reason));
        }
        let mut given = Weights::new();
        let known = self.model.info().labels == classes;
        for (place, node) in ours.nodes().iter().enumerate() {
            for (name, shape) in passes::parameters(node) {
                let weight = self.model.weights().get(&name).filter(|w| w.shape == shape);
                // The last layer's outputs are classes, whose names must be the same.
                match weight.filter(|_| known || place + 1 < ours.nodes().len()) {
                    Some(weight) => drop(given.insert(name, weight.clone())),
                    None => tracing::info!(layer = name, "drawn anew: the file has other classes"),
                }
            }
        }
        Ok(given)
    }

    /// Gives a network the weights; layers that are left out stay as they were drawn.
    pub(super) fn fill(&self, network: Network, classes: &[String]) -> Result<Network> {
        let mut all = weights::read(&network);
        all.extend(self.weights(network.graph(), classes)?);
        weights::write(network, &all).map_err(|reason| Error::checkpoint(&self.path, reason))
    }

    /// A model of a network with these weights; those of layers that are left out are zero.
    pub(super) fn model(&self, mut info: ModelInfo) -> Result<Checkpoint> {
        let mut given = self.weights(&info.graph, &info.labels)?;
        for (name, shape) in info.graph.nodes().iter().flat_map(passes::parameters) {
            let zeros =
                || Weight { values: vec![0.0; shape.iter().product()], shape: shape.clone() };
            given.entry(name).or_insert_with(zeros);
        }
        info.normalization = self.model.info().normalization;
        Checkpoint::new(info, given).map_err(|reason| Error::checkpoint(&self.path, reason))
    }

    /// The source head that the settings ask for, and its weights.
    ///
    /// # Errors
    /// [`Error::Config`] where they ask for one and none is left, as its trunk is trained.
    pub(super) fn kept_head(
        &self,
        trainer: &Trainer,
        shared: usize,
    ) -> Result<Option<(SourceHead, Weights)>> {
        if trainer.source_classes.is_none() {
            return Ok(None);
        }
        match self.source_head(shared)? {
            Some(head) => Ok(Some(head)),
            None => {
                let reason =
                    "source_classes needs weights of other classes, and their blocks frozen";
                Err(Error::Config(reason.into()))
            }
        }
    }

    /// The head of the network that training starts from and its weights, where training leaves its trunk as it was:
    /// the first `shared` nodes.
    fn source_head(&self, shared: usize) -> Result<Option<(SourceHead, Weights)>> {
        let Some((source, least)) = &self.source else { return Ok(None) };
        if shared == 0 || shared < *least {
            return Ok(None);
        }
        let graph = &source.info().graph;
        let shared = if *least > 0 { *least } else { shared };
        let head = SourceHead::new(graph, shared)
            .map_err(|reason| Error::checkpoint(&self.path, ModelError::Graph(reason)))?;
        let names = graph.nodes()[shared..].iter().flat_map(passes::parameters);
        let weights = names.filter_map(|(name, _)| {
            let weight = source.weights().get(&name)?.clone();
            Some((renamed(&name), weight))
        });
        Ok(Some((head, weights.collect())))
    }
}

/// True where two networks are the same up to their features.
fn fits(theirs: &Graph, ours: &Graph) -> bool {
    theirs.pool() == ours.pool() && theirs.nodes()[..=ours.pool()] == ours.nodes()[..=ours.pool()]
}

#[cfg(feature = "pretrained")]
fn bundled() -> Result<Checkpoint> {
    Checkpoint::pretrained()
}

#[cfg(not(feature = "pretrained"))]
fn bundled() -> Result<Checkpoint> {
    Err(Error::Config("init is `pretrained`, which needs petnet's feature `pretrained`".into()))
}

/// A model file of petnet's or PyTorch's.
fn read(path: &Path) -> Result<Checkpoint> {
    match Checkpoint::load_own(path)? {
        Some(checkpoint) => Ok(checkpoint),
        None => pytorch::unnamed(path),
    }
}

/// The network as it is before the first step.
pub(super) struct Beginning {
    pub(super) model: Network,
    pub(super) trunk: Trunk,
    /// Weights of the source head.
    pub(super) source: Weights,
}

/// A network of random numbers, or of given weights with its frozen blocks and its source head.
pub(super) fn begin(
    trainer: &Trainer,
    given: Option<Given>,
    info: &mut ModelInfo,
    (train, device): (&Dataset, &Device),
) -> Result<Beginning> {
    let drawn = |info: &ModelInfo| Network::new(&info.graph, info.normalization, device);
    let Some(given) = given else {
        return Ok(Beginning { model: drawn(info), trunk: Trunk::Empty, source: Weights::new() });
    };
    let blocks = match trainer.frozen(&info.graph, train.len()) {
        Freeze::Nothing => 0,
        Freeze::Blocks(blocks) => blocks,
        Freeze::Backbone => info.graph.blocks().len(),
    };
    info.normalization = given.model.info().normalization;
    let model = given.fill(drawn(info), &info.labels)?;
    let shared = blocks.checked_sub(1).and_then(|last| info.graph.blocks().get(last));
    let mut source = Weights::new();
    if let Some((head, weights)) = given.kept_head(trainer, shared.copied().unwrap_or(0))? {
        (info.source, source) = (Some(head), weights);
    }
    let on_cpu = trainer.device == crate::Device::Cpu;
    let start = match trainer.quantize && on_cpu && blocks > 0 {
        true => given.model.quantized_on(train, trainer.preprocess)?,
        false => given.model,
    };
    Ok(Beginning { model, trunk: Trunk::new(blocks, start, on_cpu), source })
}
