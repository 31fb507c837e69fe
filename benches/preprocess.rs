//! Image bytes to the network's input. Run with `cargo bench -p petnet-benches --bench preprocess`.
#![allow(missing_docs, reason = "criterion's macros write public items")]

use criterion::{Criterion, criterion_group, criterion_main};
use petnet::augment::{Augment, Key};
use petnet::preprocess::{Limits, Preprocess, Resize, decode, resize};

fn preprocess(criterion: &mut Criterion) {
    let limits = Limits::default();
    for (width, height, size) in [(500, 375, 64), (500, 375, 224), (4000, 3000, 224)] {
        let photo = petnet_benches::jpeg(width, height);
        let to = Preprocess { size, resize: Resize::Squeeze };
        let mut group = criterion.benchmark_group(format!("preprocess/{width}x{height}-to-{size}"));
        group.bench_function("reduced", |bencher| bencher.iter(|| to.run(&photo, &limits)));
        group.bench_function("whole", |bencher| {
            bencher.iter(|| decode(&photo, &limits).and_then(|p| resize(&p, size, to.resize)));
        });
    }
    let photo = decode(&petnet_benches::jpeg(160, 160), &limits).expect("a sound JPEG");
    let to = Preprocess { size: 64, resize: Resize::Squeeze };
    criterion.bench_function("augment/160-to-64", |bencher| {
        let mut index = 0;
        bencher.iter(|| {
            index += 1;
            Augment::default().apply(&photo, to, Key { seed: 1, epoch: 0, index })
        });
    });
}

criterion_group!(benches, preprocess);
criterion_main!(benches);
