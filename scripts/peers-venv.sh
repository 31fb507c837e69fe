#!/usr/bin/env bash
# Makes a Python environment with the libraries that petnet is compared with, on the CPU: PyTorch, ONNX Runtime, scikit-learn,
# Pillow, FastAPI. Prints its folder; an environment that exists is used as it is. Two minutes, 2 GB.
# Usage: scripts/peers-venv.sh [FOLDER]      default: $PETNET_PEERS, else ~/.cache/petnet-peers
set -euo pipefail
folder=${1:-${PETNET_PEERS:-${XDG_CACHE_HOME:-$HOME/.cache}/petnet-peers}}
scripts=$(cd "$(dirname "$0")" && pwd)
if [ ! -x "$folder/bin/python" ]; then
    echo "making the Python environment $folder" >&2
    {
        python3 -m venv "$folder"
        # An interrupted run leaves no half of an environment.
        trap 'rm -rf "$folder"' EXIT
        pip=("$folder/bin/python" -m pip install --quiet --disable-pip-version-check)
        "${pip[@]}" filelock==4.3.1 typing-extensions==4.16.0 sympy==1.14.0 networkx==3.6.1 jinja2==3.1.6 fsspec==2026.9.0 \
            setuptools==84.2.1 numpy==2.4.6 pillow==13.0.0 scikit-learn==1.9.1 safetensors==0.8.0 \
            onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0 \
            fastapi==0.165.0 uvicorn==0.54.0 python-multipart==0.0.34 prometheus_client==0.26.0 structlog==26.1.0 pyyaml==6.0.4
        # The torch wheel for Linux is a CUDA build. Its CUDA libraries take 3 GB and are never called here, so it is installed
        # without dependencies, and stand-ins take the place of the libraries that it links to. Other systems have a CPU build.
        "${pip[@]}" --no-deps torch==2.15.0 torchvision==0.29.2
        if [ "$(uname -s)" = Linux ]; then
            "${pip[@]}" --no-deps nvidia-cuda-runtime==13.2.86 nvidia-cuda-cupti==13.2.86 nvidia-cufile==1.17.1.22 \
                nvidia-nvshmem-cu13==3.7.2 cuda-pathfinder==1.9.0
            "$folder/bin/python" "$scripts/torch_cpu.py"
        fi
        "$folder/bin/python" -c 'import torch, torchvision, onnxruntime as o; print("torch", torch.__version__, "onnxruntime", o.__version__)'
        trap - EXIT
    } >&2
fi
realpath "$folder"
