//! Print which classes a model confuses on a folder of photos.
//!
//! Run with `cargo run --release --example confusion -- photos`

use petnet::{Classifier, Dataset};

fn main() -> petnet::Result<()> {
    let folder = std::env::args().nth(1).unwrap_or_else(|| "photos".into());
    let classifier = Classifier::pretrained()?;
    let metrics = classifier.evaluate(&Dataset::open(folder)?, |_| ())?.metrics();
    println!("{:>10} {:>10?}", "", classifier.labels());
    for (label, row) in classifier.labels().iter().zip(&metrics.confusion_matrix) {
        println!("{label:>10} {row:>10?}");
    }
    println!("{:.2} % of {} are right", metrics.accuracy * 100.0, metrics.num_samples);
    Ok(())
}
