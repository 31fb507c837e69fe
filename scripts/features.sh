#!/usr/bin/env bash
# The crate `petnet` with its default features, with none, and with each feature alone: each combination must compile, and
# the tests must pass with the defaults, as for a user who only adds the crate. Each feature compiles burn anew,
# so this takes half an hour and a target folder of its own; FEATURES="..." checks only some.
# Usage: [FEATURES="..."] scripts/features.sh
set -euo pipefail
cd "$(dirname "$0")/.."
export CARGO_TARGET_DIR="${PETNET_FEATURES_TARGET:-$PWD/target/features}"
cargo hack --version >/dev/null 2>&1 || cargo install --quiet --locked cargo-hack
cargo test -p petnet
if [ -n "${FEATURES:-}" ]; then
    for feature in $FEATURES; do
        cargo check -p petnet --all-targets --no-default-features --features "$feature"
    done
else
    cargo hack check -p petnet --each-feature --all-targets
fi
