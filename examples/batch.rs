//! Classify all images of a folder, sixteen in each pass through the network.
//!
//! Run with `cargo run --release --example batch -- photos`

use std::path::PathBuf;

use petnet::Classifier;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().nth(1).unwrap_or_else(|| "photos".into());
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?;
    paths.sort();
    let classifier = Classifier::pretrained()?;
    for some in paths.chunks(16) {
        let images = some.iter().map(std::fs::read).collect::<Result<Vec<_>, _>>()?;
        for (path, result) in some.iter().zip(classifier.classify_batch(&images)) {
            match result {
                Ok(prediction) => println!("{}: {prediction}", path.display()),
                // An image that cannot be decoded does not affect the others.
                Err(error) => println!("{}: {error}", path.display()),
            }
        }
    }
    Ok(())
}
