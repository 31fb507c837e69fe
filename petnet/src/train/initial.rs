//! The initial weights of a training, from files of petnet's or PyTorch's, with the same classes or others.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use super::trunk::FrozenTrunk;
use super::{Freeze, Trainer};
use crate::checkpoint::{Checkpoint, ModelInfo, Precision};
use crate::dataset::Dataset;
use crate::device::is_on_host;
use crate::disk::sha256;
use crate::error::{Error, ModelError, Result};
use crate::graph::{Graph, SourceHead, with_prefix};
use crate::nn::{Network, weights};
use crate::passes;
use crate::pytorch;
use crate::weights::{Weight, Weights};

/// The initial weights of a training; written `none`, `pretrained` or as a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum InitialWeights {
    /// Random numbers.
    Random,
    /// The bundled model's; for other classes, the ImageNet weights that it also contains.
    Pretrained,
    /// A model file of petnet's, or one of PyTorch's that [`pytorch`](crate::pytorch) reads.
    File(PathBuf),
}

impl From<String> for InitialWeights {
    fn from(text: String) -> Self {
        match text.as_str() {
            "none" => Self::Random,
            "pretrained" => Self::Pretrained,
            path => Self::File(path.into()),
        }
    }
}

impl From<InitialWeights> for String {
    fn from(weights: InitialWeights) -> Self {
        match weights {
            InitialWeights::Random => "none".into(),
            InitialWeights::Pretrained => "pretrained".into(),
            InitialWeights::File(path) => path.display().to_string(),
        }
    }
}

/// The model that [`InitialWeights`] name.
#[derive(Debug, Clone)]
pub(super) struct InitialModel {
    /// The model whose network is trained further, without a source head.
    pub(super) model: Checkpoint,
    /// A network for a source head on the same trunk, and the number of nodes that the initial model shared with it; 0 where
    /// the network is that of the initial model itself, whose classes are others than the data's.
    source: Option<(Checkpoint, usize)>,
    path: PathBuf,
}

impl InitialModel {
    /// Reads the initial weights of a network for some classes; `None` for random numbers. Without a setting, the bundled
    /// model's weights are taken where the network is the same.
    pub(super) fn read(
        weights: Option<&InitialWeights>,
        graph: &Graph,
        classes: &[String],
    ) -> Result<Option<Self>> {
        let (model, path) = match weights {
            Some(InitialWeights::Random) => return Ok(None),
            Some(InitialWeights::Pretrained) => (bundled()?, PathBuf::from("<pretrained>")),
            Some(InitialWeights::File(path)) => (read(path)?, path.clone()),
            None => {
                let same = |model: &Checkpoint| same_feature_extractor(&model.info().graph, graph);
                match bundled().ok().filter(same) {
                    Some(model) => (model, PathBuf::from("<pretrained>")),
                    None => return Ok(None),
                }
            }
        };
        Self::new(model, classes, path).map(Some)
    }

    fn new(model: Checkpoint, classes: &[String], path: PathBuf) -> Result<Self> {
        let min_shared_nodes = model.info().source.as_ref().map(SourceHead::shared);
        let source = model.source_network()?.zip(min_shared_nodes);
        let (model, source) = match (model.info().labels == classes, source) {
            (true, source) => (model.without_source()?, source),
            (false, Some((source, _))) => (source.clone(), Some((source, 0))),
            (false, None) => (model.clone(), Some((model, 0))),
        };
        Ok(Self { model, source, path })
    }

    /// SHA-256 of the weights and of those of the source head.
    pub(super) fn digest(&self) -> Result<String> {
        let mut bytes = self.model.to_bytes(Precision::F32)?;
        if let Some((source, _)) = &self.source {
            bytes.extend(source.to_bytes(Precision::F32)?);
        }
        Ok(sha256(&bytes))
    }

    /// The weights for a network's layers, without those of a last layer for other classes or of other layers in the head.
    /// Errors: [`Error::Checkpoint`] where the network is another one.
    pub(super) fn weights(&self, ours: &Graph, classes: &[String]) -> Result<Weights> {
        let theirs = &self.model.info().graph;
        if !same_feature_extractor(theirs, ours) {
            let (found, expected) = (theirs.name().into(), ours.name().into());
            let reason = ModelError::OtherNetwork { found, expected };
            return Err(Error::checkpoint(&self.path, reason));
        }
        let mut initial = Weights::new();
        let same_classes = self.model.info().labels == classes;
        for (index, node) in ours.nodes().iter().enumerate() {
            for (name, shape) in passes::parameters(node) {
                let weight = self.model.weights().get(&name).filter(|w| w.shape == shape);
                // The last layer's outputs are classes, whose names must be the same.
                match weight.filter(|_| same_classes || index + 1 < ours.nodes().len()) {
                    Some(weight) => drop(initial.insert(name, weight.clone())),
                    None => tracing::info!(layer = name, "initialised: the file has other classes"),
                }
            }
        }
        Ok(initial)
    }

    /// Sets the weights of a network; layers that are left out keep their random numbers.
    pub(super) fn fill(&self, network: Network, classes: &[String]) -> Result<Network> {
        let mut all = weights::read(&network);
        all.extend(self.weights(network.graph(), classes)?);
        weights::write(network, &all).map_err(|reason| Error::checkpoint(&self.path, reason))
    }

    /// A model of a network with these weights; those of layers that are left out are zero.
    pub(super) fn model(&self, mut info: ModelInfo) -> Result<Checkpoint> {
        let mut initial = self.weights(&info.graph, &info.labels)?;
        for (name, shape) in info.graph.nodes().iter().flat_map(passes::parameters) {
            let zeros =
                || Weight { values: vec![0.0; shape.iter().product()], shape: shape.clone() };
            initial.entry(name).or_insert_with(zeros);
        }
        info.normalization = self.model.info().normalization;
        Checkpoint::new(info, initial).map_err(|reason| Error::checkpoint(&self.path, reason))
    }

    /// The source head that the settings require, if they do, and its weights; its trunk, the first `shared` nodes, is frozen.
    /// Errors: [`Error::Config`] where they require one and there is none, as its trunk is trained.
    pub(super) fn required_source_head(
        &self,
        trainer: &Trainer,
        shared: usize,
    ) -> Result<Option<(SourceHead, Weights)>> {
        if trainer.source_classes.is_none() {
            return Ok(None);
        }
        let source = self.source.as_ref().filter(|(_, least)| shared > 0 && shared >= *least);
        let Some((source, min_shared_nodes)) = source else {
            let reason = "source_classes needs weights of other classes, and their blocks frozen";
            return Err(Error::Config(reason.into()));
        };
        let graph = &source.info().graph;
        // A head that the initial model has was cut there: its weights before that node are the trunk's.
        let shared = if *min_shared_nodes > 0 { *min_shared_nodes } else { shared };
        let head = SourceHead::new(graph, shared)
            .map_err(|reason| Error::checkpoint(&self.path, ModelError::Graph(reason)))?;
        let names = graph.nodes()[shared..].iter().flat_map(passes::parameters);
        let weights = names.filter_map(|(name, _)| {
            let weight = source.weights().get(&name)?.clone();
            Some((with_prefix(&name), weight))
        });
        Ok(Some((head, weights.collect())))
    }
}

/// True where two networks are the same up to the global average pool.
fn same_feature_extractor(theirs: &Graph, ours: &Graph) -> bool {
    theirs.global_pool() == ours.global_pool()
        && theirs.nodes()[..=ours.global_pool()] == ours.nodes()[..=ours.global_pool()]
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
    match Checkpoint::load_if_petnet(path)? {
        Some(checkpoint) => Ok(checkpoint),
        None => pytorch::with_numbered_classes(path),
    }
}

/// The network before the first step.
pub(super) struct InitialNetwork {
    pub(super) model: Network,
    pub(super) trunk: FrozenTrunk,
    /// Weights of the source head.
    pub(super) source: Weights,
}

/// A network of random numbers, or of initial weights with its frozen blocks and its source head.
pub(super) fn initial_network(
    trainer: &Trainer,
    initial: Option<InitialModel>,
    info: &mut ModelInfo,
    train: &Dataset,
    device: &Device,
) -> Result<InitialNetwork> {
    let random = |info: &ModelInfo| Network::new(&info.graph, info.normalization, device);
    let Some(initial) = initial else {
        let trunk = FrozenTrunk::Burn { blocks: 0 };
        return Ok(InitialNetwork { model: random(info), trunk, source: Weights::new() });
    };
    let blocks = match trainer.frozen(&info.graph, train.len()) {
        Freeze::Nothing => 0,
        Freeze::Blocks(blocks) => blocks,
        Freeze::Backbone => info.graph.blocks().len(),
    };
    info.normalization = initial.model.info().normalization;
    let model = initial.fill(random(info), &info.labels)?;
    let shared = blocks.checked_sub(1).and_then(|last| info.graph.blocks().get(last));
    let mut source = Weights::new();
    if let Some((head, weights)) =
        initial.required_source_head(trainer, shared.copied().unwrap_or(0))?
    {
        (info.source, source) = (Some(head), weights);
    }
    let on_cpu = match trainer.device {
        crate::Device::Cpu => true,
        crate::Device::Auto => is_on_host(&device.clone().inner()),
        crate::Device::Flex | crate::Device::NdArray | crate::Device::Wgpu(_) => false,
    };
    let frozen = match on_cpu && blocks > 0 {
        true => trainer.quantized(initial.model, train)?,
        false => initial.model,
    };
    Ok(InitialNetwork { model, trunk: FrozenTrunk::new(blocks, frozen, on_cpu), source })
}
