//! Small trainings.
#![allow(dead_code, reason = "each test file takes what it needs")]

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use petnet::arch::{Architecture, SimpleCnnConfig};
use petnet::augment::Augment;
use petnet::train::{Optimizer, Schedule};
use petnet::{Checkpoint, Precision, Trainer};

/// burn-flex draws weights from one generator for the whole process: trainings take turns.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The bytes of every weight, by name.
pub(crate) fn weights(checkpoint: &Checkpoint) -> BTreeMap<String, Vec<u8>> {
    let bytes = checkpoint.to_bytes(Precision::F32).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.tensors().into_iter().map(|(name, view)| (name, view.data().to_vec())).collect()
}

/// A network of 16 features on 24 pixels, for twelve epochs.
pub(crate) fn tiny() -> Trainer {
    Trainer {
        architecture: Architecture::new(SimpleCnnConfig {
            channels: vec![8, 16],
            hidden: 16,
            dropout: 0.0,
        }),
        image_size: 24,
        epochs: 12,
        batch_size: 8,
        learning_rate: 5e-3,
        schedule: Schedule::Constant,
        warmup_epochs: 0.0,
        optimizer: Optimizer::Adam,
        weight_decay: 0.0,
        label_smoothing: 0.0,
        grad_clip: 5.0,
        augment: Augment::none(),
        ..Trainer::default()
    }
}
