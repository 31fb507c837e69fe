//! Operation counts.

use crate::graph::{Conv2d, Graph, GraphError, Op};

/// Floating-point operations of all convolutions for one image of `side` pixels, two for each multiply-add.
pub(crate) fn flops(graph: &Graph, side: usize) -> Result<u64, GraphError> {
    let sides = graph.sides(side)?;
    let convs =
        graph.nodes().iter().zip(sides).filter_map(|(node, [height, width])| match node.op {
            Op::Conv2d(conv) => Some(conv_flops(&conv, height * width)),
            _ => None,
        });
    Ok(convs.sum())
}

/// Floating-point operations of one convolution with a given number of output pixels.
pub(crate) fn conv_flops(conv: &Conv2d, pixels: usize) -> u64 {
    2 * (pixels * conv.weight_shape().iter().product::<usize>()) as u64
}

#[cfg(test)]
mod tests {
    use crate::arch::Architecture;

    #[test]
    fn operations_are_those_of_the_formula() {
        let flops = |name: &str, side| Architecture::named(name).unwrap().flops(side).unwrap();
        let sides = [(224, 3 * 32), (112, 32 * 64), (56, 64 * 128), (28, 128 * 256)];
        let products: u64 = sides.iter().map(|(side, weights)| side * side * 9 * weights).sum();
        assert_eq!(flops("simple_cnn", 224), 2 * products);
        assert_eq!(flops("petnet", 160), 338_534_400);
        assert_eq!(flops("resnet18", 224), 3_627_122_688, "torchvision's");
        // Published: 407 million multiply-adds, including 1.28 million of the linear layer.
        let lite = flops("efficientnet_lite0", 224) as f64 / 2e6;
        assert!((lite - (407.0 - 1.28)).abs() < 22.0, "{lite}");
    }
}
