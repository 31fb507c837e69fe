#!/usr/bin/env bash
# Forward passes of the engine beside ONNX Runtime, rten, tract and burn-flex, which take turns in one run. The peers
# read the ONNX file that petnet-train exports. PEERS names those to measure, between commas; ONNX Runtime always is.
# Usage: [PEERS=onnxruntime,rten,tract,burn-flex] [ROUNDS=5] scripts/bench-inference.sh [FOLDER of the Python environment]
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-/tmp/peers}
export PEERS=${PEERS:-onnxruntime,rten,tract,burn-flex}
wanted() { [[ ,$PEERS, == *,$1,* ]]; }
need() { # MODULE PACKAGE
    "$venv/bin/python" -c "import $1" 2>/dev/null || "$venv/bin/python" -m pip install --quiet --no-deps "$2"
}
[ -x "$venv/bin/python" ] || ../shared/tools/peers-venv.sh "$venv"
need safetensors safetensors
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
