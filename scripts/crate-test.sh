#!/usr/bin/env bash
# The packaged crates as a user gets them: crates outside the workspace that depend on the unpacked package, with and without
# default features; number of dependencies and time of a cold build. TRAIN=1 adds the feature `train`.
# Usage: [TRAIN=1] scripts/crate-test.sh [WORK FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(realpath -m "${1:-/tmp/petnet-crate}")
rm -rf "$work" && mkdir -p "$work/unpacked"
cargo package --quiet --workspace --exclude petnet-benches --exclude petnet-web --exclude xtask --no-verify --allow-dirty --target-dir "$work/packages"
for crate in "$work"/packages/package/*.crate; do
    size=$(stat -c %s "$crate")
    echo "$(basename "$crate"): $((size / 1000)) kB"
    [ "$size" -lt 10000000 ] || { echo "over 10 MB"; exit 1; }
    tar -C "$work/unpacked" -xf "$crate"
done

try() { # name, features, main.rs on standard input
    mkdir -p "$work/$1/src" && cat >"$work/$1/src/main.rs"
    cat >"$work/$1/Cargo.toml" <<TOML
[package]
name = "$1"
version = "0.1.0"
edition = "2024"

[dependencies]
petnet = { path = "../unpacked/petnet-0.1.0"$2 }
TOML
    local began=$SECONDS crates
    (cd "$work/$1" && cargo build --quiet --release --target-dir "$work/target-$1")
    crates=$(cd "$work/$1" && cargo tree --edges normal --prefix none | sort -u | grep -vc "^$1 ")
    echo "$1: $crates crates, $((SECONDS - began)) s"
    (cd "$work/$1" && "$work/target-$1/release/$1" "$OLDPWD/examples/pictures/cat.jpg")
}

try answers '' <<'RUST'
use petnet::Classifier;
fn main() -> petnet::Result<()> {
    for path in std::env::args().skip(1) {
        println!("{path}: {}", Classifier::pretrained()?.classify_path(&path)?);
    }
    Ok(())
}
RUST
# With weights of one's own, nothing is bundled.
try bare ', default-features = false' <<'RUST'
fn main() {
    let model = petnet::Classifier::load("nothing.safetensors");
    println!("{}", model.err().map_or("loaded".into(), |e| e.to_string()));
}
RUST
# A checkpoint of PyTorch's in, ONNX and one byte a weight out.
try formats ', features = ["onnx", "pytorch"]' <<'RUST'
use petnet::preprocess::{Preprocess, Resize};
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let preprocess = Preprocess { size: 32, resize: Resize::Squeeze };
    let model = petnet::pytorch::Import { preprocess, ..Default::default() }
        .read(concat!(env!("CARGO_MANIFEST_DIR"), "/../unpacked/petnet-0.1.0/tests/golden/best_model.pt"))?;
    let (onnx, small) = (petnet::onnx::encode(&model)?, model.to_bytes(petnet::Precision::Int8)?);
    println!("{:?}: {} bytes of ONNX, {} of int8", model.info().labels, onnx.len(), small.len());
    Ok(())
}
RUST
if [ "${TRAIN:-0}" = 1 ]; then # compiles burn: some ten minutes
    try learns ', features = ["train"]' <<'RUST'
use petnet::burn::{Network, Tensor, open};
fn main() -> petnet::Result<()> {
    let error = petnet::Dataset::open("nowhere").unwrap_err();
    println!("{error}; default epochs {}", petnet::Trainer::default().epochs);
    let device = open(petnet::Device::Cpu)?;
    let network = Network::load(&petnet::Checkpoint::pretrained()?, &device)?;
    println!("{:?}", network.forward(Tensor::zeros([1, 3, 64, 64], &device)).dims());
    Ok(())
}
RUST
fi
