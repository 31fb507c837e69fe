//! Which tensor is which layer's: PyTorch's names and layouts to petnet's.

use std::collections::BTreeSet;

use crate::architecture::{Architecture, ResNetConfig, SimpleCnnConfig};
use crate::weights::{Weight, Weights};

type Result<T> = std::result::Result<T, String>;

/// A network, its weights by petnet's names, and its classes.
pub(super) fn arrange(tensors: Weights) -> Result<(Architecture, Weights, usize)> {
    let mut file = File::new(tensors);
    let (architecture, classes) =
        if file.has("layer1.0.conv1") { res_net(&mut file)? } else { simple_cnn(&mut file)? };
    match file.given.keys().next() {
        Some(name) => Err(format!("`{name}` belongs to no layer of {}", architecture.name())),
        None => Ok((architecture, file.taken, classes)),
    }
}

/// Basic blocks, as torchvision names them.
fn res_net(file: &mut File) -> Result<(Architecture, usize)> {
    if file.has("layer1.0.conv3") {
        return Err(
            "its blocks are bottlenecks (resnet50 and larger): only basic ones are known".into()
        );
    }
    let first = file.conv(["conv1", "bn1"], (3, 7), "ResNet.stem.0")?;
    let (mut widths, mut depths, mut inputs, mut number) = (Vec::new(), Vec::new(), first, 0);
    while file.has(&format!("layer{}.0.conv1", depths.len() + 1)) {
        let (stage, mut depth) = (depths.len() + 1, 0);
        while file.has(&format!("layer{stage}.{depth}.conv1")) {
            let from = |part: &str| format!("layer{stage}.{depth}.{part}");
            let to = |part: &str| format!("ResNet.blocks.{number}.{part}");
            let width = file.conv([&from("conv1"), &from("bn1")], (inputs, 3), &to("first"))?;
            file.conv([&from("conv2"), &from("bn2")], (width, 3), &to("second"))?;
            for name in ["downsample", "shortcut"] {
                let [conv, norm] = [0, 1].map(|place| from(&format!("{name}.{place}")));
                if file.has(&conv) {
                    file.conv([&conv, &norm], (inputs, 1), &to("shortcut"))?;
                }
            }
            (inputs, depth, number) = (width, depth + 1, number + 1);
        }
        widths.push(inputs);
        depths.push(depth);
    }
    if widths.first() != Some(&first) {
        return Err(format!("its first stage is not as wide as its stem, {first}"));
    }
    let head = file.modules(2, None).pop().ok_or("it has no linear layer")?;
    let classes = file.linear(&head, inputs, "ResNet.head")?;
    Ok((Architecture::ResNet(ResNetConfig { widths, depths, dropout: 0.0 }), classes))
}

/// Convolutions with a norm each, in the order of their names, and two linear layers.
fn simple_cnn(file: &mut File) -> Result<(Architecture, usize)> {
    let (convs, norms) = (file.modules(4, None), file.modules(1, Some("running_mean")));
    let [hidden, head] = <[String; 2]>::try_from(file.modules(2, None)).map_err(|found| {
        format!(
            "it has {} linear layers; simple_cnn has two, a residual network `layer1.0.conv1`",
            found.len()
        )
    })?;
    if convs.is_empty() || convs.len() != norms.len() {
        return Err(format!("it has {} convolutions and {} batch norms", convs.len(), norms.len()));
    }
    let (mut channels, mut inputs) = (Vec::new(), 3);
    for (number, (conv, norm)) in convs.iter().zip(&norms).enumerate() {
        let to = format!("SimpleCnn.blocks.{number}");
        inputs = file.conv([conv, norm], (inputs, 3), &to)?;
        // Each has a bias there, if only of zeros.
        let bias = Weight { shape: vec![inputs], values: vec![0.0; inputs] };
        file.taken.entry(format!("{to}.conv.bias")).or_insert(bias);
        channels.push(inputs);
    }
    let width = file.linear(&hidden, inputs, "SimpleCnn.hidden")?;
    let classes = file.linear(&head, width, "SimpleCnn.head")?;
    Ok((
        Architecture::SimpleCnn(SimpleCnnConfig { channels, hidden: width, dropout: 0.5 }),
        classes,
    ))
}

/// What is given by PyTorch's names, and what was taken of it by petnet's.
struct File {
    given: Weights,
    taken: Weights,
}

impl File {
    fn new(given: Weights) -> Self {
        Self { given, taken: Weights::new() }
    }

    fn has(&self, module: &str) -> bool {
        self.given.contains_key(&format!("{module}.weight"))
    }

    /// Modules whose weight has so many dimensions, and which have a buffer of that name, in the order
    /// in which people number them.
    fn modules(&self, dimensions: usize, buffer: Option<&str>) -> Vec<String> {
        let modules: BTreeSet<_> = self
            .given
            .iter()
            .filter(|(_, weight)| weight.shape.len() == dimensions)
            .filter_map(|(name, _)| name.strip_suffix(".weight"))
            .filter(|module| {
                buffer.is_none_or(|buffer| self.given.contains_key(&format!("{module}.{buffer}")))
            })
            .map(|module| (natural(module), module.to_string()))
            .collect();
        modules.into_iter().map(|(_, module)| module).collect()
    }

    fn take(&mut self, name: String, shape: &[usize]) -> Result<Weight> {
        let weight = self.given.remove(&name).ok_or_else(|| format!("`{name}` is missing"))?;
        if weight.shape != shape {
            return Err(format!("`{name}` has shape {:?}, not {shape:?}", weight.shape));
        }
        Ok(weight)
    }

    /// A convolution and its norm; returns its outputs.
    fn conv(
        &mut self,
        [conv, norm]: [&str; 2],
        (inputs, kernel): (usize, usize),
        to: &str,
    ) -> Result<usize> {
        let name = format!("{conv}.weight");
        let given = self.given.get(&name).ok_or_else(|| format!("`{name}` is missing"))?;
        let outputs = given.shape.first().copied().unwrap_or_default();
        let weight = self.take(name, &[outputs, inputs, kernel, kernel])?;
        self.taken.insert(format!("{to}.conv.weight"), weight);
        let bias = format!("{conv}.bias");
        if self.given.contains_key(&bias) {
            let bias = self.take(bias, &[outputs])?;
            self.taken.insert(format!("{to}.conv.bias"), bias);
        }
        let parts = [
            ("weight", "gamma"),
            ("bias", "beta"),
            ("running_mean", "running_mean"),
            ("running_var", "running_var"),
        ];
        for (theirs, ours) in parts {
            let part = self.take(format!("{norm}.{theirs}"), &[outputs])?;
            self.taken.insert(format!("{to}.norm.{ours}"), part);
        }
        Ok(outputs)
    }

    /// A linear layer, `[outputs, inputs]` there and `[inputs, outputs]` here; returns its outputs.
    fn linear(&mut self, from: &str, inputs: usize, to: &str) -> Result<usize> {
        let name = format!("{from}.weight");
        let given = self.given.get(&name).ok_or_else(|| format!("`{name}` is missing"))?;
        let outputs = given.shape.first().copied().unwrap_or_default();
        let weight = self.take(name, &[outputs, inputs])?;
        let turned = (0..inputs)
            .flat_map(|input| weight.values.iter().skip(input).step_by(inputs.max(1)).copied());
        let weight = Weight { shape: vec![inputs, outputs], values: turned.collect() };
        let bias = self.take(format!("{from}.bias"), &[outputs])?;
        self.taken.insert(format!("{to}.weight"), weight);
        self.taken.insert(format!("{to}.bias"), bias);
        Ok(outputs)
    }
}

/// Orders `conv2` before `conv10`.
fn natural(name: &str) -> Vec<(u64, String)> {
    let alike = |a: &u8, b: &u8| a.is_ascii_digit() == b.is_ascii_digit();
    let parts = name.as_bytes().chunk_by(alike).map(String::from_utf8_lossy);
    parts.map(|part| (part.parse().unwrap_or(0), part.into_owned())).collect()
}
