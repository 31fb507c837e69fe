//! Operations of a network.

use crate::graph::{Conv2d, Graph, GraphError, Op};

/// Floating-point operations of one image of `side` pixels, two for each multiply-add of a convolution.
pub(crate) fn flops(graph: &Graph, side: usize) -> Result<u64, GraphError> {
    let sides = graph.sides(side)?;
    let convs =
        graph.nodes().iter().zip(sides).filter_map(|(node, [height, width])| match node.op {
            Op::Conv2d(conv) => Some(conv_flops(&conv, height * width)),
            _ => None,
        });
    Ok(convs.sum())
}

/// Of one convolution that gives so many pixels.
pub(crate) fn conv_flops(conv: &Conv2d, pixels: usize) -> u64 {
    2 * (pixels * conv.weight_shape().iter().product::<usize>()) as u64
}

#[cfg(test)]
mod tests {
    use crate::arch::Architecture;

    #[test]
    fn operations_are_those_of_the_formula() {
        let flops = |name: &str, side| Architecture::named(name).unwrap().flops(side).unwrap();
        // Two for each product, sides and channels written out by hand.
        let sides = [(224, 3 * 32), (112, 32 * 64), (56, 64 * 128), (28, 128 * 256)];
        let products: u64 = sides.iter().map(|(side, weights)| side * side * 9 * weights).sum();
        assert_eq!(flops("simple_cnn", 224), 2 * products);
        assert_eq!(flops("petnet", 160), 338_534_400);
        assert_eq!(flops("resnet18", 224), 3_627_122_688, "torchvision's");
        // 407 million multiply-adds as published, the linear layer's 1.28 among them.
        let lite = flops("efficientnet_lite0", 224) as f64 / 2e6;
        assert!((lite - (407.0 - 1.28)).abs() < 22.0, "{lite}");
    }
}
