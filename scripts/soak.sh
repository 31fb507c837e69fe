#!/usr/bin/env bash
# Half an hour (or SECONDS) of valid, invalid and slow clients, with a kill -9 and reloads: no wrong status, no growth of memory.
# Usage: scripts/soak.sh [SECONDS]
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-$PWD/target}
[ -n "${PETNET_SERVE:-}" ] || cargo build --release --bin petnet-serve
python3 scripts/soak.py "${PETNET_SERVE:-$target/release/petnet-serve}" examples/pictures/cat.jpg "${1:-1800}"
