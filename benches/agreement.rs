//! Compares the engine with burn's own path on a data set: the largest difference of a probability, the predicted
//! classes and the decisions that differ. Run with
//! `cargo run --release --features train --example agreement -- data/processed test`.

use petnet::dataset::Split;
use petnet::{Checkpoint, Classifier, Dataset, Device, Evaluation};

fn judged(dataset: &Dataset, device: Device) -> petnet::Result<Evaluation> {
    Classifier::new(Checkpoint::pretrained()?, device)?.evaluate(dataset, |_| ())
}

fn usage() -> ! {
    eprintln!("usage: agreement PREPARED_FOLDER train|val|test");
    std::process::exit(2)
}

fn main() -> petnet::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let named = |name: &String| {
        [Split::Train, Split::Val, Split::Test].into_iter().find(|split| split.name() == name)
    };
    let [Some(data), Some(split)] = [arguments.first(), arguments.get(1)] else { usage() };
    let Some(split) = named(split) else { usage() };
    let dataset = Dataset::open(data)?.part(split)?;
    let (engine, burn) = (judged(&dataset, Device::Cpu)?, judged(&dataset, Device::Flex)?);
    let pairs = || engine.probabilities.iter().zip(&burn.probabilities);
    let difference = pairs()
        .flat_map(|(a, b)| a.iter().zip(b).map(|(a, b)| (a - b).abs()))
        .fold(0.0_f32, f32::max);
    let dog = |row: &[f32]| row[1] > row[0];
    let changed = pairs().filter(|(a, b)| dog(a) != dog(b)).count();
    let decisions = engine.decisions.iter().zip(&burn.decisions);
    let decisions = decisions.filter(|(a, b)| a != b).count();
    println!("{} photos: probabilities within {difference:.1e},", dataset.len());
    println!("{changed} other classes, {decisions} other decisions");
    Ok(())
}
