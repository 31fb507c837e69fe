//! Evaluate a model on a folder of images: metrics, the confusion matrix, its most confident errors, and a JSON file.
//!
//! Run with `cargo run --release --features train --example evaluate -- photos metrics.json`

use petnet::metrics::argmax;
use petnet::{Classifier, Dataset};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let images = Dataset::open(arguments.next().unwrap_or_else(|| "photos".into()))?;
    let report = arguments.next().unwrap_or_else(|| "metrics.json".into());
    let classifier = Classifier::pretrained()?;
    let evaluation = classifier.evaluate(&images, |_| ())?;
    let metrics = evaluation.metrics();

    println!("{:>10} {:>10?}", "", classifier.labels());
    for (label, row) in classifier.labels().iter().zip(&metrics.confusion_matrix) {
        println!("{label:>10} {row:>10?}");
    }
    let coverage = evaluation.coverage();
    println!("{:.2} % of {} are right", metrics.accuracy * 100.0, metrics.num_samples);
    println!(
        "{:.2} % are answered, {:.2} % of them right",
        coverage.share * 100.0,
        coverage.accuracy * 100.0
    );
    println!(
        "{:.2} % are unsure for low confidence, {:.2} % out of distribution",
        coverage.low_confidence * 100.0,
        coverage.out_of_distribution * 100.0
    );

    let rows = images.samples().iter().zip(&evaluation.probabilities);
    let mut errors: Vec<(f32, std::path::Display)> = rows
        .filter(|(image, row)| image.target.class() != Some(argmax(row)))
        .map(|(image, row)| (row[argmax(row)], image.path.display()))
        .collect();
    errors.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (confidence, path) in errors.iter().take(5) {
        println!("wrong by {:.0} %: {path}", confidence * 100.0);
    }
    std::fs::write(&report, serde_json::to_vec_pretty(&metrics)?)?;
    println!("wrote {report}");
    Ok(())
}
