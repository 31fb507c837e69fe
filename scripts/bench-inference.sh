#!/usr/bin/env bash
# Forward passes of the engine compared with ONNX Runtime, rten, tract and burn-flex, interleaved in one run. The peers
# read the ONNX file that petnet-train exports. PEERS lists those to measure, between commas; ONNX Runtime always is measured.
# Usage: [PEERS=onnxruntime,rten,tract,burn-flex] [ROUNDS=5] scripts/bench-inference.sh [PYTHON ENVIRONMENT, default $PETNET_PEERS]
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$(scripts/peers-venv.sh "${1:-}")
export PEERS=${PEERS:-onnxruntime,rten,tract,burn-flex}
wanted() { [[ ,$PEERS, == *,$1,* ]]; }
need() { # MODULE PACKAGE
    "$venv/bin/python" -c "import $1" 2>/dev/null || "$venv/bin/python" -m pip install --quiet --no-deps "$2"
}
if wanted tract; then
    need tract tract
fi
rten=${RTEN_CLI:-/tmp/rten}
if wanted rten && [ ! -x "$rten/bin/rten" ]; then
    cargo install --quiet --root "$rten" rten-cli || echo "rten-cli cannot be installed and is left out" >&2
fi
cargo build --release --bin petnet-train --example speed
unset "${!OPENBLAS_@}" # settings of another peer's threads
built=${CARGO_TARGET_DIR:-target}/release
"$venv/bin/python" benches/peers/inference.py "$built/examples/speed" "$built/petnet-train" "$rten/bin/rten"
