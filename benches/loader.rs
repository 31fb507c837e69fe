//! Batches from disk. Run with `cargo bench -p petnet-benches --bench loader`.
#![allow(missing_docs, reason = "criterion's macros write public items")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use petnet::Dataset;
use petnet::augment::Augment;
use petnet::loader::{Loader, LoaderSettings};
use petnet::preprocess::{Preprocess, Resize};

const PHOTOS: usize = 512;

fn loader(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for number in 0..PHOTOS {
        let class = folder.path().join(["cat", "dog"][number % 2]);
        std::fs::create_dir_all(&class).expect("a writable folder");
        let photo = petnet_benches::jpeg(150 + number as u32 % 32, 160);
        std::fs::write(class.join(format!("{number}.jpg")), photo).expect("a writable folder");
    }
    let dataset = Dataset::open(folder.path()).expect("a sound data set");
    let mut group = criterion.benchmark_group("loader");
    group.throughput(Throughput::Elements(PHOTOS as u64)).sample_size(10);
    for (name, cache_bytes) in [("decoding", 0), ("cached", 1 << 28)] {
        for workers in [1, 2] {
            let settings = LoaderSettings {
                batch_size: 32,
                workers,
                cache_bytes,
                preprocess: Preprocess { size: 64, resize: Resize::Squeeze },
                augment: Augment::default(),
                seed: 1,
                shuffle: true,
            };
            let loader = Loader::new(&dataset, settings);
            group.bench_function(format!("{name}/{workers}-workers"), |bencher| {
                bencher.iter(|| loader.epoch(0, 0).flatten().count());
            });
        }
    }
}

criterion_group!(benches, loader);
criterion_main!(benches);
