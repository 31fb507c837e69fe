//! The networks that configurations can name: one file each, and one line in its table. Independent of
//! weights and tensors. `docs/adding-an-architecture.md` shows how to add one.

mod efficientnet_lite;
#[cfg(feature = "pytorch")]
mod keys;
mod petnet;
mod resnet;
mod simple_cnn;

use std::fmt;
use std::sync::Arc;

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

#[cfg(feature = "pytorch")]
pub(crate) use keys::{Keys, RecognisedNetwork};

pub use efficientnet_lite::{EfficientNetLiteConfig, Stage};
pub use petnet::PetNetConfig;
pub use resnet::ResNetConfig;
pub use simple_cnn::SimpleCnnConfig;

use crate::error::{Error, Result};
use crate::graph::{Graph, GraphError};
use crate::preprocess::{Preprocess, Resize};

/// Mean and standard deviation of a channel's values (0 to 1), in the order R, G, B.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalization {
    /// Subtracted first.
    pub mean: [f32; 3],
    /// Divided by then.
    pub std: [f32; 3],
}

impl Normalization {
    /// The figures of ImageNet, as torchvision's networks expect them.
    pub const IMAGENET: Self = Self { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] };
    /// `(x - 127) / 128` of values from 0 to 255, as EfficientNet-Lite expects them.
    pub const SYMMETRIC: Self = Self { mean: [127.0 / 255.0; 3], std: [128.0 / 255.0; 3] };

    /// True where standard deviations are above 0, and all values and what [`Self::affine`] makes of them are finite.
    pub(crate) fn is_valid(&self) -> bool {
        let valid = |std: &f32| *std > 0.0 && std.is_finite();
        self.std.iter().all(valid) && self.affine().as_flattened().iter().all(|x| x.is_finite())
    }

    /// Scale and shift of each channel that map values from 0 to 255 to normalised ones.
    pub(crate) fn affine(&self) -> [[f32; 3]; 2] {
        let Self { mean, std } = self;
        [std.map(|std| 1.0 / (255.0 * std)), [0, 1, 2].map(|c| -mean[c] / std[c])]
    }
}

impl Default for Normalization {
    /// [`Normalization::IMAGENET`].
    fn default() -> Self {
        Self::IMAGENET
    }
}

/// Settings of one kind of network: enough to build its graph.
///
/// ```
/// use petnet::arch::{Architecture, NetworkConfig};
/// use petnet::graph::{Activation, Builder, Graph, GraphError, Window};
///
/// /// One convolution, to show the steps.
/// #[derive(Debug, Clone, serde::Serialize)]
/// struct Tiny {
///     width: usize,
/// }
///
/// impl NetworkConfig for Tiny {
///     fn name(&self) -> &str {
///         "tiny"
///     }
///
///     fn graph(&self, classes: usize) -> Result<Graph, GraphError> {
///         let mut net = Builder::new(self.name());
///         let x = net.conv_norm("stem", Builder::IMAGE, self.width, Window::centred(3, 2));
///         let x = net.activation(x, Activation::Relu);
///         let features = net.global_avg_pool(x);
///         net.linear("head", features, classes);
///         net.build()
///     }
/// }
///
/// let tiny = Architecture::new(Tiny { width: 8 });
/// assert_eq!(tiny.graph(3)?.classes(), 3);
/// # Ok::<(), petnet::Error>(())
/// ```
pub trait NetworkConfig: fmt::Debug + Send + Sync {
    /// Its name in configurations and reports.
    fn name(&self) -> &str;

    /// The network for a number of classes.
    /// Errors: [`GraphError`] for settings that make no network.
    fn graph(&self, classes: usize) -> Result<Graph, GraphError>;
}

/// An architecture that configurations can name.
pub(crate) struct ArchitectureEntry {
    name: &'static str,
    /// The network from its settings; those left out keep this entry's defaults.
    parse: fn(&Map<String, Value>) -> serde_json::Result<Architecture>,
    pub(crate) normalization: Normalization,
    pub(crate) preprocess: Preprocess,
    /// The network that keys and shapes of a PyTorch file are of, if they are of this kind.
    #[cfg(feature = "pytorch")]
    pub(crate) recognise: Option<fn(&Keys<'_>) -> Option<RecognisedNetwork>>,
}

const SQUEEZED: Preprocess = Preprocess { size: 224, resize: Resize::Squeeze };

const fn cropped(size: u32) -> Preprocess {
    Preprocess { size, resize: Resize::CenterCrop }
}

/// An [`ArchitectureEntry`]; without the feature `pytorch` it has no `recognise`.
macro_rules! entry {
    ($name:literal, $default:expr, $normalization:expr, $preprocess:expr, $recognise:expr) => {
        ArchitectureEntry {
            name: $name,
            parse: |given| parse($default, given),
            normalization: $normalization,
            preprocess: $preprocess,
            #[cfg(feature = "pytorch")]
            recognise: $recognise,
        }
    };
}

/// Name, default settings, normalisation and preprocessing of its published weights, and how PyTorch's files of
/// it are recognised (once a family, the most specific first).
#[rustfmt::skip]
pub(crate) static TABLE: &[ArchitectureEntry] = &[
    entry!("petnet", PetNetConfig::default(), Normalization::IMAGENET, SQUEEZED, None),
    entry!("efficientnet_lite0", EfficientNetLiteConfig::lite(0), Normalization::SYMMETRIC, cropped(224), Some(efficientnet_lite::recognise)),
    entry!("efficientnet_lite1", EfficientNetLiteConfig::lite(1), Normalization::SYMMETRIC, cropped(240), None),
    entry!("efficientnet_lite2", EfficientNetLiteConfig::lite(2), Normalization::SYMMETRIC, cropped(260), None),
    entry!("resnet18", ResNetConfig::default(), Normalization::IMAGENET, SQUEEZED, Some(resnet::recognise)),
    entry!("improved_cnn", ResNetConfig::improved(), Normalization::IMAGENET, SQUEEZED, None),
    entry!("simple_cnn", SimpleCnnConfig::default(), Normalization::IMAGENET, SQUEEZED, Some(simple_cnn::recognise)),
];

/// Names that networks of other settings than the table's have, each with the entry of its kind.
const OTHER_SETTINGS: [(&str, &str); 4] = [
    ("efficientnet_lite", "efficientnet_lite0"),
    ("efficientnet_lite3", "efficientnet_lite0"),
    ("efficientnet_lite4", "efficientnet_lite0"),
    ("resnet", "resnet18"),
];

/// The defaults of an entry with the given settings in their place.
fn parse<C>(default: C, given: &Map<String, Value>) -> serde_json::Result<Architecture>
where
    C: NetworkConfig + Serialize + DeserializeOwned + 'static,
{
    let mut settings = serde_json::to_value(default)?;
    if let Some(settings) = settings.as_object_mut() {
        settings.extend(given.clone());
    }
    serde_json::from_value::<C>(settings).map(Architecture::new)
}

/// A network by its settings, as configurations write it: `{name: resnet18, dropout: 0.2}`. Settings that are
/// left out keep the defaults of the name.
///
/// ```
/// use petnet::arch::{Architecture, PetNetConfig};
///
/// let small = Architecture::new(PetNetConfig {
///     stem: 16,
///     widths: vec![16, 32],
///     depths: vec![1, 1],
///     dropout: 0.1,
/// });
/// assert!(small.flops(160)? < Architecture::named("resnet18")?.flops(160)?);
/// # Ok::<(), petnet::Error>(())
/// ```
#[derive(Clone)]
pub struct Architecture {
    config: Arc<dyn NetworkConfig>,
    settings: Map<String, Value>,
}

impl Architecture {
    /// A network of any settings, also of a kind that petnet does not know by name.
    pub fn new<C: NetworkConfig + Serialize + 'static>(config: C) -> Self {
        let settings = match serde_json::to_value(&config) {
            Ok(Value::Object(settings)) => settings,
            Ok(_) | Err(_) => Map::new(),
        };
        Self { config: Arc::new(config), settings }
    }

    /// The names that [`Architecture::named`] knows.
    pub fn names() -> impl Iterator<Item = &'static str> {
        TABLE.iter().map(|entry| entry.name)
    }

    /// The default settings of a name.
    ///
    /// # Errors
    /// [`Error::Config`] for a name that is not among [`Architecture::names`].
    pub fn named(name: &str) -> Result<Self> {
        Self::from_settings(name, &Map::new())
    }

    /// A network by name and some of its settings.
    fn from_settings(name: &str, settings: &Map<String, Value>) -> Result<Self> {
        let entry = TABLE.iter().find(|entry| entry.name == name).ok_or_else(|| {
            let known = Self::names().collect::<Vec<_>>().join(", ");
            Error::Config(format!("unknown model name `{name}`, known: {known}"))
        })?;
        (entry.parse)(settings).map_err(|e| Error::Config(format!("model {name}: {e}")))
    }

    /// The same network with another setting, e.g. `dropout`.
    ///
    /// # Errors
    /// [`Error::Config`] where it has no such setting or the value does not fit it, or where its kind has no name.
    pub fn with(&self, setting: &str, value: impl Into<Value>) -> Result<Self> {
        let mut settings = self.settings.clone();
        settings.insert(setting.into(), value.into());
        Self::from_settings(self.entry_name(), &settings)
    }

    /// The name as configurations write it.
    pub fn name(&self) -> &str {
        self.config.name()
    }

    /// The name in the table of the same kind of network, `resnet18` for a `resnet` of other widths; the network's own
    /// name where the table has none.
    fn entry_name(&self) -> &str {
        let own = self.name();
        let known = OTHER_SETTINGS.iter().find(|(name, _)| *name == own);
        known.map_or(own, |(_, entry)| entry)
    }

    /// The network for a number of classes.
    ///
    /// # Errors
    /// [`Error::Config`] for settings that make no network.
    pub fn graph(&self, classes: usize) -> Result<Graph> {
        let graph = self.config.graph(classes);
        graph.map_err(|reason| Error::Config(format!("model {}: {reason}", self.name())))
    }

    /// Floating-point operations of one image of `side` pixels, two for each multiply-add of a convolution; all
    /// else is little beside them.
    ///
    /// # Errors
    /// [`Error::Config`] for settings that make no network, or a side that is too small for it.
    pub fn flops(&self, side: usize) -> Result<u64> {
        crate::passes::flops(&self.graph(1)?, side).map_err(|e| Error::Config(e.to_string()))
    }

    /// The normalisation of this network's published weights.
    pub fn normalization(&self) -> Normalization {
        self.entry().map_or(Normalization::default(), |entry| entry.normalization)
    }

    /// The preprocessing of this network's published weights.
    pub fn preprocess(&self) -> Preprocess {
        self.entry().map_or(SQUEEZED, |entry| entry.preprocess)
    }

    fn entry(&self) -> Option<&'static ArchitectureEntry> {
        TABLE.iter().find(|entry| entry.name == self.entry_name())
    }
}

/// A network as it is, with another last layer where classes differ: `Architecture::new(info.graph.clone())` is that
/// of a model file.
impl NetworkConfig for Graph {
    fn name(&self) -> &str {
        self.name()
    }

    fn graph(&self, classes: usize) -> Result<Graph, GraphError> {
        self.with_classes(classes)
    }
}

impl Default for Architecture {
    /// EfficientNet-Lite0: of the networks with bundled weights, the most accurate for its operations.
    fn default() -> Self {
        Self::new(EfficientNetLiteConfig::lite(0))
    }
}

impl fmt::Debug for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.config.fmt(f)
    }
}

impl PartialEq for Architecture {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name() && self.settings == other.settings
    }
}

impl Serialize for Architecture {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut all = Map::new();
        all.insert("name".into(), self.entry_name().into());
        all.extend(self.settings.clone());
        all.serialize(serializer)
    }
}

/// A name, or an object of a `name` and settings.
impl<'de> Deserialize<'de> for Architecture {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (name, settings) = match Value::deserialize(deserializer)? {
            Value::Object(mut settings) => (settings.remove("name"), settings),
            name => (Some(name), Map::new()),
        };
        match name {
            Some(Value::String(name)) => {
                Self::from_settings(&name, &settings).map_err(D::Error::custom)
            }
            _ => Err(D::Error::custom("a model needs a name, e.g. `{name: petnet}`")),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
