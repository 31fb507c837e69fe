#!/usr/bin/env bash
# The packaged crates, as somebody gets them: a crate outside the workspace that depends on the unpacked file, with
# and without default features, with training; number of dependencies and time of a cold build.
# Usage: scripts/crate-test.sh [WORK FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(realpath -m "${1:-/tmp/petnet-crate}")
rm -rf "$work" && mkdir -p "$work/unpacked"
cargo package --quiet --workspace --exclude petnet-benches --exclude petnet-web --no-verify --allow-dirty --target-dir "$work/packages"
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
if [ "${TRAIN:-0}" = 1 ]; then # compiles burn: some ten minutes
    try learns ', features = ["train"]' <<'RUST'
fn main() {
    let error = petnet::Dataset::open("nowhere").unwrap_err();
    println!("{error}; default epochs {}", petnet::Trainer::default().epochs);
}
RUST
fi
