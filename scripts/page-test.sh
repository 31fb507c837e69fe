#!/usr/bin/env bash
# The page in a real browser: choose, drop and paste a photo, look at the heat map, both reasons for an unsure answer, the
# keyboard, a phone's screen and a broken file. Needs chromium and npm.
# Usage: scripts/page-test.sh [PHOTO] [FOLDER for screenshots]
set -euo pipefail
cd "$(dirname "$0")/.."
command -v chromium >/dev/null || {
    apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core
}
cargo build --release --bin petnet-serve
work=$(mktemp -d)
target=${CARGO_TARGET_DIR:-target}
"$target/release/petnet-serve" --host 127.0.0.1 --port 18800 --metrics-addr off --log warn --feedback "$work/feedback" &
server=$!
trap 'kill $server; rm -rf "$work"' EXIT
npm install --silent --no-fund --no-audit --prefix "$work" playwright-core >/dev/null
MODULES="$work/" node scripts/page-test.mjs "${1:-examples/pictures/cat.jpg}" "${2:-$work}"
