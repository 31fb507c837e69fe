#!/usr/bin/env bash
# Makes petnet-serve/proto/inference.{rs,bin} of inference.proto; with --check, fails where they differ from what is committed.
# Usage: scripts/grpc-code.sh [--check]
set -euo pipefail
cd "$(dirname "$0")/.."
cargo run --release --quiet --manifest-path petnet-serve/proto/generate/Cargo.toml
if [ "${1:-}" = --check ]; then
    git diff --exit-code --stat -- petnet-serve/proto
fi
