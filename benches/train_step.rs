//! A training step of `simple_cnn`: forward, backward, Adam.
//! Run with `cargo bench -p petnet-benches --bench train_step`.
#![allow(missing_docs, reason = "criterion's macros write public items")]

use burn::nn::loss::CrossEntropyLossConfig;
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Device, Int, Tensor};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const BATCH: usize = 32;

fn train_step(criterion: &mut Criterion) {
    let device = Device::flex().autodiff();
    let mut network = petnet_benches::network(&device);
    let mut adam = AdamConfig::new().init();
    let loss = CrossEntropyLossConfig::new().init(&device);
    let images = petnet_benches::images(BATCH, petnet_benches::SIDE, &device);
    let classes: Vec<i32> = (0..BATCH as i32).map(|i| i % 2).collect();
    let targets = Tensor::<1, Int>::from_ints(classes.as_slice(), &device);
    let mut group = criterion.benchmark_group("train_step");
    group.throughput(Throughput::Elements(BATCH as u64)).sample_size(10);
    group.bench_function(format!("{}px_batch-{BATCH}", petnet_benches::SIDE), |bencher| {
        bencher.iter(|| {
            let loss = loss.forward(network.forward(images.clone()), targets.clone());
            let gradients = GradientsParams::from_grads(loss.backward(), &network);
            network = adam.step(1e-3, network.clone(), gradients);
        });
    });
}

criterion_group!(benches, train_step);
criterion_main!(benches);
