//! Every architecture of the table, as small as it shows what it has.

use petnet::arch::{
    Architecture, EfficientNetLiteConfig, PetNetConfig, ResNetConfig, SimpleCnnConfig, Stage,
};

/// Their networks, with that share of features dropped in training.
pub(crate) fn small(dropout: f64) -> Vec<Architecture> {
    let stage = |kernel, stride, expansion, channels| Stage {
        repeats: 2,
        kernel,
        stride,
        expansion,
        channels,
    };
    let stages = vec![stage(3, 1, 1, 8), stage(5, 2, 3, 12), stage(3, 2, 2, 20)];
    let widths = vec![8, 12];
    let petnet = PetNetConfig { stem: 5, widths: widths.clone(), depths: vec![1, 2], dropout };
    vec![
        Architecture::new(SimpleCnnConfig { channels: vec![4, 6], hidden: 8, dropout }),
        Architecture::new(petnet),
        Architecture::new(ResNetConfig { widths, depths: vec![1, 1], dropout }),
        Architecture::new(EfficientNetLiteConfig { stem: 8, stages, head: 24, dropout }),
    ]
}
