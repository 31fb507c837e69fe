#!/usr/bin/env bash
# petnet-serve compared, in one run, with services of the same purpose: FastAPI with ONNX Runtime or PyTorch,
# LitServe, BentoML, and a hand-written axum service with ONNX Runtime. `scripts/rivals.sh --help` lists the options. $PETNET_ARCHIVE
# calibrates the int8 services; without it they are left out.
# Usage: [PETNET_PEERS=FOLDER] [BUILT=FOLDER of ready release programs] scripts/rivals.sh [OPTIONS of rivals.py]
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$(scripts/peers-venv.sh)
need() { # MODULE PACKAGE...
    "$venv/bin/python" -c "import importlib.util as i, sys; sys.exit(i.find_spec('$1') is None)" || "$venv/bin/python" -m pip install --quiet "${@:2}"
}
need packaging packaging
need uvloop "uvicorn[standard]"
need skimage --no-deps scikit-image || echo "scikit-image cannot be installed: a drawing takes its photo's place" >&2
need litserve litserve || echo "LitServe cannot be installed and is left out" >&2

# Pillow-SIMD is Pillow with vector instructions. It takes Pillow's place, so it lies in a folder of its own.
if [ ! -d "$venv/pillow-simd/PIL" ]; then
    CC="cc -mavx2" "$venv/bin/python" -m pip install --quiet --no-deps --target "$venv/pillow-simd" pillow-simd ||
        echo "Pillow-SIMD cannot be built: plain Pillow takes its place" >&2
fi
# BentoML pins versions of packages that the others share.
if [ ! -x "$venv-bentoml/bin/bentoml" ]; then
    python3 -m venv "$venv-bentoml"
    version=$("$venv/bin/python" -c 'import onnxruntime; print(onnxruntime.__version__)')
    "$venv-bentoml/bin/python" -m pip install --quiet bentoml pillow "onnxruntime==$version" ||
        echo "BentoML cannot be installed and is left out" >&2
fi

if [ -z "${BUILT:-}" ]; then
    cargo build --release --bin petnet-serve --bin petnet-train --example load
    BUILT=${CARGO_TARGET_DIR:-target}/release
fi
rivals=${RIVALS_TARGET:-/tmp/rivals-target}
cargo build --release --locked --manifest-path benches/rivals/axum-ort/Cargo.toml --target-dir "$rivals"
ORT_DYLIB_PATH=$(ls "$venv"/lib/python3*/site-packages/onnxruntime/capi/libonnxruntime.so.*)
export ORT_DYLIB_PATH MLFLOW_TRACKING_URI=off
exec "$venv/bin/python" scripts/rivals.py --built "$BUILT" --axum-ort "$rivals/release/axum-ort" "$@"
