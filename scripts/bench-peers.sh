#!/usr/bin/env bash
# Forward passes and training steps of petnet's networks beside PyTorch's, turn by turn in one run.
# Usage: [ROUNDS=5] scripts/bench-peers.sh [FOLDER of the Python environment with PyTorch]
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-/tmp/peers}
[ -x "$venv/bin/python" ] || ../shared/tools/peers-venv.sh "$venv"
"$venv/bin/python" -c 'import efficientnet_lite_pytorch' 2>/dev/null ||
    "$venv/bin/python" -m pip install --quiet --no-deps efficientnet-lite-pytorch
cargo build --release --example speed
"$venv/bin/python" benches/peers/torch_twin.py "${CARGO_TARGET_DIR:-target}/release/examples/speed"
