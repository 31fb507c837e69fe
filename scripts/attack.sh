#!/usr/bin/env bash
# Denial-of-service attacks on the service in control groups of 128 MB, 384 MB and 1 GiB: measured memory and response times against
# their limits. Some minutes. Needs Python and, for the control groups, root.
# Usage: scripts/attack.sh [MB...]
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-$PWD/target}
cargo build --release --bin petnet-serve
ulimit -n 8192 2>/dev/null || true
python3 scripts/attack.py "$target/release/petnet-serve" examples/pictures/cat.jpg "$@"
