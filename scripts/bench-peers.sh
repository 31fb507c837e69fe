#!/usr/bin/env bash
# Forward passes and training steps of both networks beside PyTorch's, turn by turn in one run.
# Usage: scripts/bench-peers.sh [FOLDER of the Python environment with PyTorch]
set -euo pipefail
cd "$(dirname "$0")/.."
peers=${1:-/tmp/peers}
if [ ! -x "$peers/bin/python" ]; then
    ../shared/tools/peers-venv.sh "$peers"
fi
cargo build --release --example speed
"$peers/bin/python" benches/peers/torch_twin.py "${CARGO_TARGET_DIR:-target}/release/examples/speed"
