//! The engine's passes, and its convolutions one by one beside a large matrix product. Run with
//! `cargo bench -p petnet-benches --bench engine`.
#![allow(missing_docs, reason = "criterion's macros write public items")]

use std::time::Instant;

use burn::tensor::{Device, Distribution, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use petnet::arch::{Architecture, Normalization};
use petnet::burn::Network;
use petnet::preprocess::{Pixels, Preprocess, Resize};
use petnet::{Classifier, ModelInfo};

const RUNS: usize = 15;
const PRODUCT: usize = 1024;

fn classifier(name: &str, size: u32) -> Classifier {
    let graph = Architecture::named(name).and_then(|known| known.graph(2)).expect("a known name");
    let network = Network::new(&graph, Normalization::default(), &Device::flex());
    let preprocess = Preprocess { size, resize: Resize::Squeeze };
    let info = ModelInfo::new(graph, vec!["cat".into(), "dog".into()], preprocess);
    Classifier::new(network.checkpoint(info).expect("a whole model"), petnet::Device::Cpu)
        .expect("a whole model")
}

fn pictures(size: u32, count: usize) -> Vec<Pixels> {
    let values = (size * size * 3) as usize;
    (0..count)
        .map(|photo| (0..values).map(|i| ((i + photo) * 7 % 256) as u8).collect())
        .filter_map(|values| Pixels::new(size, size, values))
        .collect()
}

fn median(mut work: impl FnMut() -> f64) -> f64 {
    let mut times: Vec<f64> = (0..RUNS).map(|_| work()).collect();
    times.sort_by(f64::total_cmp);
    times[RUNS / 2]
}

/// The throughput of burn-flex's matrix product, in GFLOP/s.
fn sgemm() -> f64 {
    let device = Device::flex();
    let random =
        || Tensor::<2>::random([PRODUCT, PRODUCT], Distribution::Uniform(-1.0, 1.0), &device);
    let (a, b) = (random(), random());
    let seconds = median(|| {
        let began = Instant::now();
        let product = a.clone().matmul(b.clone());
        std::hint::black_box(product.into_data());
        began.elapsed().as_secs_f64()
    });
    2.0 * (PRODUCT as f64).powi(3) / seconds * 1e-9
}

fn layers(classifier: &Classifier, picture: &Pixels, sgemm: f64) {
    let profiles: Vec<_> =
        (0..RUNS).map(|_| classifier.profile(picture).expect("a fitting picture")).collect();
    for (place, layer) in profiles[0].iter().enumerate() {
        let mut runs = profiles.iter();
        let seconds = median(|| runs.next().map_or(0.0, |run| run[place].time.as_secs_f64()));
        let rate = layer.flops as f64 / seconds * 1e-9;
        println!("  {:28}{rate:8.1} GFLOP/s {:6.2} of sgemm", layer.name, rate / sgemm);
    }
}

fn engine(criterion: &mut Criterion) {
    let sgemm = sgemm();
    println!("sgemm of {PRODUCT}: {sgemm:.1} GFLOP/s");
    for (name, size) in [("petnet", 160), ("simple_cnn", 224), ("efficientnet_lite0", 160)] {
        let classifier = classifier(name, size);
        let mut group = criterion.benchmark_group(format!("engine/{name}-{size}"));
        println!("{name} {size} px");
        layers(&classifier, &pictures(size, 1)[0], sgemm);
        for count in [1, 16] {
            let pictures = pictures(size, count);
            group.throughput(Throughput::Elements(count as u64));
            group.bench_with_input(
                BenchmarkId::from_parameter(count),
                &pictures,
                |bencher, all| {
                    bencher.iter(|| classifier.classify_pixels(all));
                },
            );
        }
    }
}

criterion_group!(benches, engine);
criterion_main!(benches);
