#!/usr/bin/env bash
# petnet's models beside the programs of their field, with full-size networks: PyTorch checkpoints are imported and
# must predict as PyTorch does (logits of resnet18 within 1e-3, probabilities within 1e-4), and exported ONNX
# files must give in ONNX Runtime what petnet gives (1e-4). The pictures are PNG at the model's own size, so that
# all see the same pixels; photos of other sizes are resized by Pillow on one side, and their figure is only told.
# Needs the virtual environment of ../shared/tools/peers-venv.sh, by default in /tmp/peers.
# SPEED=1 then measures resnet18 beside both.
# Usage: [SPEED=1] scripts/formats-test.sh [VENV]
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-/tmp/peers}
[ -x "$venv/bin/python" ] || ../shared/tools/peers-venv.sh "$venv"
"$venv/bin/python" -c 'import PIL' 2>/dev/null || "$venv/bin/python" -m pip install --quiet pillow
cargo build --release --bin petnet-train
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export MLFLOW_TRACKING_URI=off
speed=()
if [ "${SPEED:-0}" = 1 ]; then
    cargo build --release --features train --example speed
    speed=(target/release/examples/speed)
fi
"$venv/bin/python" -W ignore scripts/formats_check.py target/release/petnet-train "$work" "${speed[@]}"
