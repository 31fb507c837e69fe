//! Inference of `simple_cnn`. Run with `cargo bench -p petnet-benches --bench forward`.
#![allow(missing_docs, reason = "criterion's macros write public items")]

use burn::tensor::Device;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn forward(criterion: &mut Criterion) {
    let device = Device::flex();
    let network = petnet_benches::network(&device);
    let mut group = criterion.benchmark_group("forward");
    group.sample_size(10);
    for (count, side) in [(1, petnet_benches::SIDE), (16, petnet_benches::SIDE), (1, 224)] {
        let images = petnet_benches::images(count, side, &device);
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(format!("{side}px_batch-{count}"), |bencher| {
            bencher.iter(|| network.forward(images.clone()).into_data());
        });
    }
}

criterion_group!(benches, forward);
criterion_main!(benches);
