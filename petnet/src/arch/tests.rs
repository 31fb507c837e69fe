#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use super::*;
use crate::graph::{Builder, Window};

#[path = "../../tests/common/networks.rs"]
mod networks;

/// Every architecture, small; tests of what must hold for all run over these.
pub(crate) fn small() -> Vec<Architecture> {
    networks::small(0.2)
}

#[test]
fn every_kind_of_network_in_the_table_has_a_small_one() {
    let kind = |network: &Architecture| {
        let settings = format!("{:?}", network.config);
        settings.split([' ', '{']).next().unwrap_or_default().to_string()
    };
    let small: Vec<String> = small().iter().map(kind).collect();
    for name in Architecture::names() {
        let kind = kind(&Architecture::named(name).unwrap());
        assert!(small.contains(&kind), "{kind} is missing in tests/common/networks.rs");
    }
}

#[test]
fn every_name_is_that_of_its_network_and_settings_survive_json() {
    for name in Architecture::names() {
        let network = Architecture::named(name).unwrap();
        assert_eq!((network.name(), network.graph(5).unwrap().name()), (name, name));
        let json = serde_json::to_string(&network).unwrap();
        assert_eq!(serde_json::from_str::<Architecture>(&json).unwrap(), network, "{json}");
        let graph = network.graph(5).unwrap();
        let json = serde_json::to_string(&graph).unwrap();
        assert_eq!(serde_json::from_str::<Graph>(&json).unwrap(), graph, "{json}");
        assert_eq!(graph.with_classes(7).unwrap(), network.graph(7).unwrap(), "{name}");
    }
}

#[test]
fn settings_that_are_left_out_keep_the_defaults_of_the_name() {
    let read = |json: &str| serde_json::from_str::<Architecture>(json);
    let lite = read(r#"{"name": "efficientnet_lite2", "dropout": 0.5}"#).unwrap();
    let expected = EfficientNetLiteConfig { dropout: 0.5, ..EfficientNetLiteConfig::lite(2) };
    assert_eq!(lite, Architecture::new(expected));
    let error = read(r#"{"name": "resnet18", "width": 3}"#).unwrap_err().to_string();
    assert!(error.contains("`width`"), "{error}");
    let error = read(r#"{"name": "resnet"}"#).unwrap_err().to_string();
    assert!(error.contains("known: petnet"), "{error}");
    assert_eq!(read(r#""resnet18""#).unwrap(), Architecture::named("resnet18").unwrap());
    assert!(read("{}").is_err());
    assert!(read("18").is_err());
    let wide = ResNetConfig { widths: vec![8, 16], depths: vec![1, 1], dropout: 0.0 };
    let wide = Architecture::new(wide);
    let json = serde_json::to_string(&wide).unwrap();
    assert_eq!(read(&json).unwrap(), wide, "{json}");
    assert_eq!(wide.with("dropout", 0.25).unwrap().name(), "resnet");
}

/// A network of another crate.
#[derive(Debug, Serialize)]
struct Foreign {
    #[serde(skip)]
    name: &'static str,
}

impl NetworkConfig for Foreign {
    fn name(&self) -> &str {
        self.name
    }

    fn graph(&self, _: usize) -> Result<Graph, GraphError> {
        Builder::new(self.name).build()
    }
}

#[test]
fn a_name_that_begins_like_one_of_the_table_is_not_that_one() {
    for name in ["efficientnet", "res", "p", ""] {
        let foreign = Architecture::new(Foreign { name });
        assert_eq!(foreign.normalization(), Normalization::default(), "{name}");
        assert_eq!(foreign.preprocess(), SQUEEZED, "{name}");
        assert_eq!(serde_json::to_value(&foreign).unwrap()["name"], name);
    }
    let lite = EfficientNetLiteConfig { head: 64, ..EfficientNetLiteConfig::lite(0) };
    let lite = Architecture::new(lite);
    assert_eq!(
        (lite.name(), lite.normalization()),
        ("efficientnet_lite", Normalization::SYMMETRIC)
    );
    assert_eq!(serde_json::to_value(&lite).unwrap()["name"], "efficientnet_lite0");
    // Not in the table, but recognised in files of PyTorch.
    let large = Architecture::new(EfficientNetLiteConfig::lite(3));
    assert_eq!(large.normalization(), Normalization::SYMMETRIC);
    let json = serde_json::to_string(&large).unwrap();
    assert_eq!(serde_json::from_str::<Architecture>(&json).unwrap(), large, "{json}");
}

#[test]
fn a_sum_of_unequal_sides_has_an_error_of_its_own() {
    let mut net = Builder::new("unequal");
    let small = net.conv2d("small", Builder::IMAGE, 3, Window::centred(3, 2));
    let sum = net.add(Builder::IMAGE, small);
    let features = net.global_avg_pool(sum);
    net.linear("logits", features, 2);
    let graph = net.build().unwrap();
    assert_eq!(graph.sides(1).unwrap().last(), Some(&[1, 1]));
    assert_eq!(
        graph.sides(9).unwrap_err().to_string(),
        "an image of 9 pixels leaves unequal sides to add at node `image.add`"
    );
}

#[test]
fn settings_that_make_no_network_are_refused() {
    let refused = |architecture: Architecture, reason: &str| {
        let error = architecture.graph(2).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    };
    let simple = |channels: Vec<usize>, dropout| {
        Architecture::new(SimpleCnnConfig { channels, hidden: 4, dropout })
    };
    refused(simple(vec![4], 1.0), "dropout is 1");
    refused(simple(vec![0], 0.0), "outputs is 0");
    refused(simple(vec![1 << 20], 0.0), "outputs is 1048576");
    refused(Architecture::new(ResNetConfig { widths: vec![], ..Default::default() }), "is 0");
    let stages = vec![efficientnet_lite::Stage {
        repeats: 1,
        kernel: 0,
        stride: 1,
        expansion: 1,
        channels: 8,
    }];
    let lite = EfficientNetLiteConfig { stages, ..Default::default() };
    refused(Architecture::new(lite), "kernel is 0");
}

/// Lite0 to 2 have the values of the published packages: 4,694,073, 5,470,408 and 6,150,232, of which a counter for
/// each batch norm is none of the network's.
#[test]
fn efficientnet_lite_has_the_published_number_of_values() {
    for (number, published, norms) in [(0, 4_694_073, 49), (1, 5_470_408, 64), (2, 6_150_232, 64)] {
        let graph = EfficientNetLiteConfig::lite(number).graph(1000).unwrap();
        let shapes = graph.nodes().iter().flat_map(crate::passes::parameters);
        let values: usize = shapes.map(|(_, shape)| shape.iter().product::<usize>()).sum();
        assert_eq!(values, published - norms, "lite{number}");
        assert_eq!(graph.blocks().len(), [16, 21, 21][number]);
    }
}
