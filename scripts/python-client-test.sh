#!/usr/bin/env bash
# A Python client generated from /openapi.json, as another team would make it, against a running server.
# Usage: scripts/python-client-test.sh [FOLDER of a Python environment to make]
set -euo pipefail
cd "$(dirname "$0")/.."
environment=${1:-/tmp/petnet-python-client}
if [ ! -x "$environment/bin/openapi-python-client" ]; then
    python3 -m venv "$environment"
    "$environment/bin/python" -m pip install -q openapi-python-client==0.26.2 ruff
fi
cargo build --release --bin petnet-serve
work=$(mktemp -d)
"${CARGO_TARGET_DIR:-target}/release/petnet-serve" --host 127.0.0.1 --port 18960 --metrics-addr off --log warn \
    --feedback "$work/feedback" &
server=$!
trap 'kill $server; rm -rf "$work"' EXIT
for _ in $(seq 50); do curl -sf 127.0.0.1:18960/readyz >/dev/null && break; sleep 0.1; done
# The generator leaves out image/* bodies; application/octet-stream is accepted as well.
PATH=$environment/bin:$PATH openapi-python-client generate --url http://127.0.0.1:18960/openapi.json --meta none \
    --output-path "$work/petnet_client" >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
PYTHONPATH=$work "$environment/bin/python" scripts/python_client.py http://127.0.0.1:18960 examples/pictures/cat.jpg
