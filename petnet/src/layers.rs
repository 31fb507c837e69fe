//! The layers of each architecture in the order in which they run, for those who build something of
//! them; what they cost, and whether given weights are theirs. Knows names and shapes; no values.

use std::collections::BTreeSet;

use crate::architecture::Architecture;
use crate::weights::Weights;

/// What batch norm adds to a variance.
pub(crate) const EPSILON: f32 = 1e-5;

/// What a network is built into. Maps are known by number: 0 is the picture, and each layer gives the next.
pub(crate) trait Build {
    /// A convolution with its norm, by the names under `prefix`, and what follows it.
    ///
    /// # Errors
    /// Names what is missing or does not fit.
    fn conv(&mut self, prefix: &str, conv: Conv) -> Result<usize, String>;

    /// The largest of the three by three pixels around every second one, of what a ReLU gave.
    fn pool(&mut self, name: &str, from: usize) -> usize;

    /// A layer of the head, by the names under `prefix`; the first one takes the means of the last maps.
    ///
    /// # Errors
    /// Names what is missing or does not fit.
    fn dense(&mut self, prefix: &str, sizes: [usize; 2], relu: bool) -> Result<(), String>;
}

/// A convolution apart from its weights.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Conv {
    /// The map that it reads.
    pub(crate) from: usize,
    /// A map of the output's shape to add before the ReLU.
    pub(crate) shortcut: Option<usize>,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    /// Whether it has a bias of its own.
    pub(crate) bias: bool,
    pub(crate) relu: bool,
    /// Whether the largest of each two by two pixels is kept at the end.
    pub(crate) pool: bool,
}

impl Conv {
    fn of([inputs, outputs]: [usize; 2], kernel: usize, stride: usize) -> Self {
        let (from, shortcut, bias, relu, pool) = (0, None, false, true, false);
        Self { from, shortcut, inputs, outputs, kernel, stride, bias, relu, pool }
    }

    fn from(self, from: usize) -> Self {
        Self { from, ..self }
    }
}

/// Side of the first convolution's kernel, in pixels.
pub(crate) fn first_kernel(architecture: &Architecture) -> usize {
    match architecture {
        Architecture::SimpleCnn(_) | Architecture::PetNet(_) => 3,
        Architecture::ResNet(_) => 7,
    }
}

/// # Errors
/// What `to` says.
pub(crate) fn build(
    architecture: &Architecture,
    classes: usize,
    to: &mut impl Build,
) -> Result<(), String> {
    match architecture {
        Architecture::SimpleCnn(config) => {
            let (mut last, mut inputs) = (0, 3);
            for (block, &outputs) in config.channels.iter().enumerate() {
                let conv = Conv::of([inputs, outputs], 3, 1).from(last);
                let name = format!("SimpleCnn.blocks.{block}");
                last = to.conv(&name, Conv { bias: true, pool: true, ..conv })?;
                inputs = outputs;
            }
            to.dense("SimpleCnn.hidden", [inputs, config.hidden], true)?;
            to.dense("SimpleCnn.head", [config.hidden, classes], false)
        }
        Architecture::PetNet(config) => {
            let first = config.widths.first().copied().unwrap_or(config.stem);
            let stem = to.conv("PetNet.stem.0", Conv::of([3, config.stem], 3, 2))?;
            let stem = to.conv("PetNet.stem.1", Conv::of([config.stem, first], 3, 2).from(stem))?;
            let stages = (&*config.widths, &*config.depths);
            let features = residual("PetNet", stages, (stem, first), to)?;
            to.dense("PetNet.head", [features, classes], false)
        }
        Architecture::ResNet(config) => {
            let first = config.widths.first().copied().unwrap_or(1);
            let stem = to.conv("ResNet.stem.0", Conv::of([3, first], 7, 2))?;
            let stem = to.pool("ResNet.stem.pool", stem);
            let stages = (&*config.widths, &*config.depths);
            let features = residual("ResNet", stages, (stem, first), to)?;
            to.dense("ResNet.head", [features, classes], false)
        }
    }
}

/// What follows a stem, a map and its channels; returns the width of the last block.
fn residual(
    network: &str,
    (widths, depths): (&[usize], &[usize]),
    (mut last, mut inputs): (usize, usize),
    to: &mut impl Build,
) -> Result<usize, String> {
    let mut number = 0;
    for (stage, (&width, &depth)) in widths.iter().zip(depths).enumerate() {
        for place in 0..depth {
            let name = |part: &str| format!("{network}.blocks.{number}.{part}");
            let stride = if stage > 0 && place == 0 { 2 } else { 1 };
            let shortcut = if inputs != width || stride != 1 {
                let conv = Conv::of([inputs, width], 1, stride).from(last);
                to.conv(&name("shortcut"), Conv { relu: false, ..conv })?
            } else {
                last
            };
            let first = Conv::of([inputs, width], 3, stride).from(last);
            let inner = to.conv(&name("first"), first)?;
            let second = Conv::of([width, width], 3, 1).from(inner);
            last = to.conv(&name("second"), Conv { shortcut: Some(shortcut), ..second })?;
            (inputs, number) = (width, number + 1);
        }
    }
    Ok(inputs)
}

/// Of one picture of `side` pixels, two for each multiply-add of a convolution.
pub(crate) fn flops(architecture: &Architecture, side: usize) -> u64 {
    let mut counter = Counter { sides: vec![side], sum: 0 };
    // Whatever the classes, nothing is refused: no weights are asked for.
    let _ = build(architecture, 1, &mut counter);
    counter.sum
}

struct Counter {
    /// Of each map, in pixels.
    sides: Vec<usize>,
    sum: u64,
}

impl Counter {
    fn next(&mut self, side: usize) -> usize {
        self.sides.push(side);
        self.sides.len() - 1
    }
}

impl Build for Counter {
    fn conv(&mut self, _: &str, conv: Conv) -> Result<usize, String> {
        let side = self.sides[conv.from].div_ceil(conv.stride);
        let products = side * side * conv.kernel * conv.kernel * conv.inputs * conv.outputs;
        self.sum += 2 * products as u64;
        Ok(self.next(if conv.pool { side / 2 } else { side }))
    }

    fn pool(&mut self, _: &str, from: usize) -> usize {
        self.next(self.sides[from].div_ceil(2))
    }

    fn dense(&mut self, _: &str, _: [usize; 2], _: bool) -> Result<(), String> {
        Ok(())
    }
}

/// Whether weights are all those of an architecture, and no others.
///
/// # Errors
/// Names the first that is missing, superfluous or of another shape.
pub(crate) fn check(
    architecture: &Architecture,
    classes: usize,
    weights: &Weights,
) -> Result<(), String> {
    let mut checker = Checker { weights, seen: BTreeSet::new(), maps: 0 };
    build(architecture, classes, &mut checker)?;
    match weights.keys().find(|name| !checker.seen.contains(*name)) {
        Some(name) => Err(format!("weight `{name}` belongs to no layer")),
        None => Ok(()),
    }
}

struct Checker<'a> {
    weights: &'a Weights,
    seen: BTreeSet<String>,
    maps: usize,
}

impl Checker<'_> {
    fn expect(&mut self, name: String, shape: &[usize]) -> Result<(), String> {
        let weight = self.weights.get(&name);
        let weight = weight.ok_or_else(|| format!("weight `{name}` is missing"))?;
        let values = shape.iter().product::<usize>();
        if weight.shape != shape || weight.values.len() != values || values == 0 {
            return Err(format!(
                "weight `{name}` has shape {:?}, the architecture needs {shape:?}",
                weight.shape
            ));
        }
        self.seen.insert(name);
        Ok(())
    }

    fn next(&mut self) -> usize {
        self.maps += 1;
        self.maps
    }
}

impl Build for Checker<'_> {
    fn conv(&mut self, prefix: &str, conv: Conv) -> Result<usize, String> {
        let Conv { inputs, outputs, kernel, bias, .. } = conv;
        self.expect(format!("{prefix}.conv.weight"), &[outputs, inputs, kernel, kernel])?;
        if bias {
            self.expect(format!("{prefix}.conv.bias"), &[outputs])?;
        }
        for part in ["gamma", "beta", "running_mean", "running_var"] {
            self.expect(format!("{prefix}.norm.{part}"), &[outputs])?;
        }
        Ok(self.next())
    }

    fn pool(&mut self, _: &str, _: usize) -> usize {
        self.next()
    }

    fn dense(&mut self, prefix: &str, sizes: [usize; 2], _: bool) -> Result<(), String> {
        self.expect(format!("{prefix}.weight"), &sizes)?;
        self.expect(format!("{prefix}.bias"), &sizes[1..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::{PetNetConfig, SimpleCnnConfig};

    #[test]
    fn operations_are_those_of_the_formula() {
        // Two for each product, sides and channels written out by hand.
        let simple = Architecture::SimpleCnn(SimpleCnnConfig::default());
        let sides = [(224, 3 * 32), (112, 32 * 64), (56, 64 * 128), (28, 128 * 256)];
        let products: u64 = sides.iter().map(|(side, weights)| side * side * 9 * weights).sum();
        assert_eq!(flops(&simple, 224), 2 * products);
        assert_eq!(flops(&Architecture::PetNet(PetNetConfig::default()), 160), 338_534_400);
    }
}
