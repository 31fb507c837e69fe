#!/usr/bin/env bash
# The page of examples/web in a real browser without a network: drops images and a broken file, compares the
# answers with petnet-train's, prints size and time. Needs chromium and npm.
# Usage: scripts/web-test.sh [FOLDER for screenshots]
set -euo pipefail
cd "$(dirname "$0")/.."
command -v chromium >/dev/null || {
    apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core
}
examples/web/build.sh
cargo build --release --bin petnet-train
work=$(mktemp -d)
python3 -m http.server 18801 --bind 127.0.0.1 --directory target/web >/dev/null 2>&1 &
server=$!
trap 'kill $server; rm -rf "$work"' EXIT
photos=(examples/pictures/cat.jpg petnet/tests/golden/waves.png)
"${CARGO_TARGET_DIR:-target}/release/petnet-train" predict --quiet --format jsonl "${photos[@]}" >"$work/answers.jsonl"
npm install --silent --no-fund --no-audit --prefix "$work" playwright-core >/dev/null
MODULES="$work/" node scripts/web-test.mjs "$work/answers.jsonl" "${1:-$work}"
wasm=target/web/petnet_web_bg.wasm
echo "$(stat -c %s $wasm) bytes of WebAssembly with the model, $(gzip -9c $wasm | wc -c) compressed"
