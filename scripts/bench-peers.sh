#!/usr/bin/env bash
# Forward passes and training steps of petnet's networks compared with PyTorch's, interleaved in one run.
# Usage: [ROUNDS=5] scripts/bench-peers.sh [PYTHON ENVIRONMENT, default $PETNET_PEERS]
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$(scripts/peers-venv.sh "${1:-}")
"$venv/bin/python" -c 'import efficientnet_lite_pytorch' 2>/dev/null ||
    "$venv/bin/python" -m pip install --quiet --no-deps efficientnet-lite-pytorch
cargo build --release --example speed
"$venv/bin/python" benches/peers/torch_twin.py "${CARGO_TARGET_DIR:-target}/release/examples/speed"
