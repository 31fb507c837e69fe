#!/usr/bin/env bash
# Thousands of requests generated from /openapi.json: no server error, no answer that the description lacks.
# Usage: scripts/schemathesis.sh [FOLDER of a Python environment to make]
set -euo pipefail
cd "$(dirname "$0")/.."
environment=${1:-/tmp/schemathesis}
if [ ! -x "$environment/bin/st" ]; then
    python3 -m venv "$environment"
    "$environment/bin/python" -m pip install -q schemathesis
fi
cargo build --release --bin petnet-serve
store=$(mktemp -d)
hash=$(printf %s secret | sha256sum | cut -d' ' -f1)
"${CARGO_TARGET_DIR:-target}/release/petnet-serve" --host 127.0.0.1 --port 18900 --metrics-addr off \
    --log warn --api-keys-sha256 "$hash" --feedback "$store" &
server=$!
trap 'kill $server; rm -rf "$store"' EXIT
sleep 1
# Bytes that match the schema need not be an image, so "valid" bodies may be refused. Without a model, every other path gives 503.
"$environment/bin/st" run http://127.0.0.1:18900/openapi.json -n "${EXAMPLES:-300}" --seed 1 \
    --exclude-path "/v2/repository/models/{model}/unload" \
    --exclude-checks positive_data_acceptance,negative_data_rejection \
    -H 'Authorization: Bearer secret'
