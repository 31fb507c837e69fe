#!/usr/bin/env bash
# Generates petnet-serve/proto/inference.{rs,bin} from inference.proto; with --check, fails where they differ from the committed files.
# Usage: scripts/grpc-code.sh [--check]
set -euo pipefail
cd "$(dirname "$0")/.."
cargo run --release --quiet --manifest-path petnet-serve/proto/generate/Cargo.toml
if [ "${1:-}" = --check ]; then
    git diff --exit-code --stat -- petnet-serve/proto
fi
