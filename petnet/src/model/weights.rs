//! A module's parameters as named, flat numbers, and back.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Tensor, TensorData};

use crate::weights::{Weight, Weights};

/// Reads every float of `module`; batch-norm statistics included.
pub(crate) fn read<M: Module>(module: &M) -> Weights {
    let mut reader = Reader::default();
    module.visit(&mut reader);
    reader.weights
}

/// Replaces every float of `module`.
///
/// # Errors
/// Names the first weight that is missing, superfluous or of another shape.
pub(crate) fn write<M: Module>(module: M, weights: Weights) -> Result<M, String> {
    let mut writer = Writer { path: Path::default(), weights, error: None };
    let module = module.map(&mut writer);
    match (writer.error, writer.weights.into_keys().next()) {
        (Some(error), _) => Err(error),
        (None, Some(name)) => Err(format!("weight `{name}` belongs to no layer")),
        (None, None) => Ok(module),
    }
}

#[derive(Default)]
struct Path(Vec<String>);

impl Path {
    fn name(&self) -> String {
        self.0.join(".")
    }
}

#[derive(Default)]
struct Reader {
    path: Path,
    weights: Weights,
}

impl ModuleVisitor for Reader {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.0.push(name.to_string());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.0.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let tensor = param.val();
        let shape = tensor.dims().to_vec();
        let values = tensor.into_data().try_into_vec_as().unwrap_or_default();
        self.weights.insert(self.path.name(), Weight { shape, values });
    }
}

struct Writer {
    path: Path,
    weights: Weights,
    error: Option<String>,
}

impl ModuleMapper for Writer {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.0.push(name.to_string());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.0.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let name = self.path.name();
        let Some(weight) = self.weights.remove(&name) else {
            self.error.get_or_insert(format!("weight `{name}` is missing"));
            return param;
        };
        let expected = param.dims().to_vec();
        if expected != weight.shape {
            self.error.get_or_insert(format!(
                "weight `{name}` has shape {:?}, the architecture needs {expected:?}",
                weight.shape
            ));
            return param;
        }
        let data = TensorData::new(weight.values, weight.shape);
        param.map(|old| {
            let new = Tensor::from_data(data, &old.device());
            if old.is_require_grad() { new.require_grad() } else { new }
        })
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

    use burn::module::Module as _;
    use burn::store::ModuleRecord;
    use burn::tensor::Device;

    use super::*;
    use crate::architecture::{Architecture, Normalization};
    use crate::checkpoint::ModelInfo;
    use crate::model::Network;
    use crate::preprocess::{Preprocess, Resize};

    #[test]
    fn burns_own_file_holds_every_weight() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.bpk");
        let device = Device::flex();
        let architecture = Architecture::named("petnet", 0.0).unwrap();
        let network = Network::new(&architecture, 3, Normalization::default(), &device);
        let labels = ["a", "b", "c"].map(String::from).into();
        let preprocess = Preprocess { size: 32, resize: Resize::Squeeze };
        let info = ModelInfo::new(architecture.clone(), labels, preprocess);
        network.checkpoint(info).save_burnpack(&path).unwrap();
        let other = Network::new(&architecture, 3, Normalization::default(), &device);
        assert_ne!(read(&other), read(&network));
        let loaded = other.try_load_record(ModuleRecord::load(&path).unwrap()).unwrap();
        assert_eq!(read(&loaded), read(&network));
    }
}
