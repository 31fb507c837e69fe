#!/usr/bin/env bash
# petnet-serve with the unmodified clients of Triton: the Open Inference Protocol v2 over HTTP and gRPC, and gRPC's own health and
# reflection clients.
# Usage: scripts/triton-test.sh [FOLDER of a Python environment to make]
set -euo pipefail
cd "$(dirname "$0")/.."
environment=${1:-/tmp/petnet-triton}
if [ ! -x "$environment/bin/python" ]; then
    python3 -m venv "$environment"
    "$environment/bin/python" -m pip install -q 'tritonclient[http]==2.73.0' pillow==12.1.0
fi
"$environment/bin/python" -c 'import grpc_health, grpc_reflection, tritonclient.grpc' 2>/dev/null ||
    "$environment/bin/python" -m pip install -q 'tritonclient[http,grpc]==2.73.0' grpcio-health-checking grpcio-reflection
cargo build --release --bin petnet-serve
store=$(mktemp -d)
hash=$(printf %s secret | sha256sum | cut -d' ' -f1)
"${CARGO_TARGET_DIR:-target}/release/petnet-serve" --host 127.0.0.1 --port 18950 --metrics-addr off --log warn \
    --feedback "$store" --api-keys-sha256 "$hash" &
server=$!
trap 'kill $server; rm -rf "$store"' EXIT
for _ in $(seq 50); do curl -sf 127.0.0.1:18950/readyz >/dev/null && break; sleep 0.1; done
"$environment/bin/python" scripts/triton_check.py 127.0.0.1:18950 secret examples/pictures/cat.jpg
"$environment/bin/python" scripts/triton_grpc_check.py 127.0.0.1:18950 secret examples/pictures/cat.jpg
