#!/usr/bin/env bash
# Forward pass and training step of simple_cnn beside PyTorch's, in one run.
# Usage: scripts/bench-peers.sh [FOLDER of the Python environment with PyTorch]
set -euo pipefail
cd "$(dirname "$0")/.."
peers=${1:-/tmp/peers}
if [ ! -x "$peers/bin/python" ]; then
    ../shared/tools/peers-venv.sh "$peers"
fi
target=${CARGO_TARGET_DIR:-target}
cargo bench -p petnet-benches --bench forward --bench train_step
"$peers/bin/python" benches/peers/torch_twin.py "$target/criterion"
