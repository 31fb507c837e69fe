#![doc = include_str!("../README.md")]
#![recursion_limit = "256"]

pub mod arch;
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
#[doc(hidden)]
pub mod disk;
pub mod drift;
mod embed;
mod engine;
mod error;
#[cfg(feature = "train")]
mod evaluate;
mod explain;
#[cfg(feature = "files")]
pub mod files;
pub mod graph;
mod kernel;
#[cfg(feature = "train")]
pub mod loader;
#[cfg(feature = "train")]
mod logistic;
pub mod metrics;
#[cfg(feature = "mlflow")]
pub mod mlflow;
#[cfg(feature = "burn")]
mod nn;
#[cfg(feature = "onnx")]
pub mod onnx;
mod ood;
mod passes;
mod prediction;
pub mod preprocess;
mod profile;
#[cfg(feature = "pytorch")]
pub mod pytorch;
mod quantization;
mod quantize;
#[cfg(feature = "train")]
pub mod review;
mod runner;
pub mod similar;
mod storage;
mod task;
#[cfg(feature = "train")]
pub mod train;
mod vector;
mod weights;

// Unit tests share networks with the integration tests, which name the crate.
#[cfg(test)]
extern crate self as petnet;

#[cfg(feature = "train")]
pub use calibrate::Calibration;
pub use checkpoint::{Checkpoint, ModelInfo, Precision};
pub use classifier::Classifier;
#[cfg(feature = "train")]
pub use dataset::Dataset;
pub use device::Device;
pub use error::{Error, ImageError, ModelError, Result};
#[cfg(feature = "train")]
pub use evaluate::{Coverage, Evaluation, LabelEvaluation};
pub use explain::Explanation;
pub use ood::{ClassSet, OodScore, OutOfDistribution};
pub use prediction::{Decision, Prediction};
pub use profile::LayerTime;
pub use quantization::Quantization;
pub use task::Task;
#[cfg(feature = "train")]
pub use train::Trainer;
