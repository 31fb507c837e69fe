//! A toy architecture with all that a network may have, in this one file: `docs/adding-an-architecture.md` walks
//! through it. Nothing else knows of it.

use petnet::arch::NetworkConfig;
use petnet::graph::{Activation, Builder, Graph, GraphError, Padding, Window};
use serde::Serialize;

#[derive(Debug, Clone, Serialize)]
pub(crate) struct ToyConfig {
    /// Channels of every layer.
    pub(crate) width: usize,
}

impl NetworkConfig for ToyConfig {
    fn name(&self) -> &str {
        "toy"
    }

    fn graph(&self, classes: usize) -> Result<Graph, GraphError> {
        let mut net = Builder::new(self.name());
        let halved = Window { kernel: 2, stride: 2, padding: Padding::Explicit(0) };
        let x = net.conv_norm("stem", Builder::IMAGE, self.width, Window::same(3, 2));
        let x = net.activation(x, Activation::Relu6);
        let x = net.max_pool(x, halved);
        net.end_block();
        let inner = net.depthwise_norm("depthwise", x, Window::same(5, 1));
        let inner = net.activation(inner, Activation::Relu6);
        let inner = net.conv_norm("project", inner, self.width, Window::centred(1, 1));
        let x = net.add(inner, x);
        net.end_block();
        let features = net.global_avg_pool(x);
        net.linear("classes", features, classes);
        net.build()
    }
}
