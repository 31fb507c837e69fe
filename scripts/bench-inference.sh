#!/usr/bin/env bash
# Forward passes of the engine beside burn-flex, rten, tract and ONNX Runtime, turn by turn.
# Usage: scripts/bench-inference.sh [FOLDER of the Python environment with PyTorch and ONNX Runtime]
set -euo pipefail
cd "$(dirname "$0")/.."
peers=${1:-/tmp/peers}
if [ ! -x "$peers/bin/python" ]; then
    ../shared/tools/peers-venv.sh "$peers"
fi
"$peers/bin/python" -m pip install --quiet tract safetensors
rten=${RTEN_CLI:-/tmp/rten}
if [ ! -x "$rten/bin/rten" ]; then
    cargo install --quiet --root "$rten" rten-cli
fi
cargo build --release --example speed
"$peers/bin/python" benches/peers/inference.py "${CARGO_TARGET_DIR:-target}/release/examples/speed" "$rten/bin/rten"
