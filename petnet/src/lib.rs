#![doc = include_str!("../README.md")]
#![recursion_limit = "256"]

pub mod architecture;
#[cfg(feature = "train")]
pub mod augment;
#[cfg(feature = "burn")]
pub mod burn;
#[cfg(feature = "train")]
mod calibrate;
mod checkpoint;
mod classifier;
#[cfg(feature = "train")]
pub mod dataset;
mod device;
pub mod drift;
mod engine;
mod error;
#[cfg(feature = "train")]
mod evaluate;
mod explain;
mod kernel;
mod layers;
#[cfg(feature = "train")]
pub mod loader;
pub mod metrics;
#[cfg(feature = "mlflow")]
pub mod mlflow;
#[cfg(feature = "burn")]
mod model;
mod novelty;
#[cfg(feature = "onnx")]
pub mod onnx;
pub mod preprocess;
mod profile;
#[cfg(feature = "pytorch")]
pub mod pytorch;
mod runner;
mod storage;
#[cfg(feature = "train")]
pub mod train;
mod weights;

pub use checkpoint::{Checkpoint, ModelInfo, Precision, sha256, write_atomically};
pub use classifier::{Classifier, Prediction};
#[cfg(feature = "train")]
pub use dataset::Dataset;
pub use device::Device;
pub use error::{Error, ImageError, Result};
#[cfg(feature = "train")]
pub use evaluate::{Coverage, Evaluation};
pub use explain::Explanation;
pub use novelty::Novelty;
pub use profile::LayerTime;
#[cfg(feature = "train")]
pub use train::Trainer;
