//! Photo bytes to the network's input. Run with `cargo bench -p petnet-benches --bench preprocess`.
#![allow(missing_docs, reason = "criterion's macros write public items")]

use criterion::{Criterion, criterion_group, criterion_main};
use petnet::augment::{Augment, Key};
use petnet::preprocess::{Limits, Preprocess, Resize, decode};

fn preprocess(criterion: &mut Criterion) {
    let limits = Limits::default();
    let to = Preprocess { size: 224, resize: Resize::Squeeze };
    for (width, height) in [(500, 375), (4000, 3000)] {
        let photo = petnet_benches::jpeg(width, height);
        criterion.bench_function(&format!("preprocess/{width}x{height}-to-224"), |bencher| {
            bencher.iter(|| to.run(&photo, &limits));
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
