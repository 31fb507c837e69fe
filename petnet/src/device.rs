//! The computing device by name. The only module that depends on which backends were compiled in.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// The device that runs a network: `auto`, `cpu`, `flex`, `ndarray`, or `wgpu[:n]`.
///
/// ```
/// let device: petnet::Device = "cpu".parse()?;
/// assert_eq!(device.to_string(), "cpu");
/// # Ok::<(), petnet::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Device {
    /// A GPU where the `wgpu` feature finds one, else the CPU.
    Auto,
    /// The CPU: petnet's own engine for inference, burn-flex with petnet's kernels for training.
    #[default]
    Cpu,
    /// The CPU, through burn-flex for inference too.
    Flex,
    /// The CPU, through burn's older ndarray backend; slow to train.
    NdArray,
    /// A GPU through wgpu; the number counts discrete GPUs from 0, `None` takes the best one.
    Wgpu(Option<usize>),
}

impl FromStr for Device {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let unknown = || {
            Error::Device(format!(
                "unknown device `{name}`: use auto, cpu, flex, ndarray, wgpu or wgpu:N"
            ))
        };
        match name {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "flex" => Ok(Self::Flex),
            "ndarray" => Ok(Self::NdArray),
            "wgpu" | "gpu" => Ok(Self::Wgpu(None)),
            other => {
                let index = other.strip_prefix("wgpu:").ok_or_else(unknown)?;
                Ok(Self::Wgpu(Some(index.parse().map_err(|_| unknown())?)))
            }
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Flex => f.write_str("flex"),
            Self::NdArray => f.write_str("ndarray"),
            Self::Wgpu(None) => f.write_str("wgpu"),
            Self::Wgpu(Some(index)) => write!(f, "wgpu:{index}"),
        }
    }
}

impl Device {
    /// The feature that brings it.
    #[cfg(not(all(feature = "flex", feature = "ndarray", feature = "wgpu")))]
    pub(crate) fn feature(self) -> &'static str {
        match self {
            Self::Cpu | Self::Flex => "flex",
            Self::NdArray => "ndarray",
            Self::Auto | Self::Wgpu(_) => "wgpu",
        }
    }
}

#[cfg(feature = "burn")]
impl Device {
    /// The device as burn knows it.
    /// Errors: [`Error::Device`] when the backend was not compiled in or finds no adapter.
    pub(crate) fn open(self) -> Result<burn::tensor::Device> {
        match self {
            Self::Auto => Self::Wgpu(None).open().or_else(|error| {
                tracing::info!(%error, "on the CPU");
                Self::Flex.open()
            }),
            #[cfg(feature = "flex")]
            Self::Cpu | Self::Flex => Ok(burn::tensor::Device::flex()),
            #[cfg(feature = "ndarray")]
            #[expect(deprecated, reason = "kept selectable for comparison; flex is the default")]
            Self::NdArray => Ok(burn::tensor::Device::ndarray()),
            #[cfg(feature = "wgpu")]
            Self::Wgpu(index) => open_wgpu(index),
            #[cfg(not(all(feature = "flex", feature = "ndarray", feature = "wgpu")))]
            other => {
                let feature = other.feature();
                Err(Error::Device(format!(
                    "`{feature}` was not compiled in: build with `--features {feature}`, or use `cpu`"
                )))
            }
        }
    }
}

/// True for a device whose memory is the host's.
#[cfg(any(feature = "train", feature = "wgpu"))]
pub(crate) fn is_on_host(device: &burn::tensor::Device) -> bool {
    let mut hosts = [Device::Flex, Device::NdArray].into_iter().filter_map(|host| host.open().ok());
    hosts.any(|host| host == *device)
}

#[cfg(feature = "wgpu")]
fn open_wgpu(index: Option<usize>) -> Result<burn::tensor::Device> {
    use burn::tensor::{Device, DeviceKind};
    use std::collections::BTreeMap;
    use std::sync::{Mutex, PoisonError};

    // wgpu answers a second initialisation of the same adapter with an error.
    static OPENED_DEVICES: Mutex<BTreeMap<Option<usize>, Device>> = Mutex::new(BTreeMap::new());
    let mut opened = OPENED_DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(device) = opened.get(&index) {
        return Ok(device.clone());
    }
    keep_kernels();
    let kind = index.map_or(DeviceKind::DefaultDevice, DeviceKind::DiscreteGpu);
    let device = Device::wgpu_options().device_kind(kind).init().map_err(|e| {
        Error::Device(format!(
            "no usable GPU adapter ({e}): install a Vulkan driver, or use `--device cpu`"
        ))
    })?;
    opened.insert(index, device.clone());
    Ok(device)
}

/// Keeps compiled kernels, beside the choices among them that burn keeps by itself, in the user's cache folder: `cubecl` in
/// `$XDG_CACHE_HOME` or its like. A `cubecl.toml` may name another folder.
#[cfg(feature = "wgpu")]
fn keep_kernels() {
    use burn::cubecl::config::cache::CacheConfig;
    use burn::cubecl::config::{CubeClRuntimeConfig, RuntimeConfig as _};

    let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
    config.compilation.cache = true;
    if let CacheConfig::Target = config.environment.path {
        // By default it would be the folder `target` of whichever project the program is started in.
        config.environment.path = CacheConfig::Global;
    }
    // An application that has set its own keeps it.
    let _ = CubeClRuntimeConfig::try_set(config);
}
