#!/usr/bin/env bash
# The page and /docs in a real browser: several images chosen, dropped, pasted and taken with a (fake) camera, the queue, the
# heat map, both reasons for an unsure answer, feedback, keys, models, the keyboard, a phone's and a desktop's screen in light
# and dark, a broken file, a path prefix, and a request sent from /docs. Needs chromium and npm.
# Usage: scripts/page-test.sh [IMAGE] [FOLDER for screenshots]
# BASE=http://host:port/ tests the service that runs there, with feedback switched on and no keys, and builds nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v chromium >/dev/null || {
    apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core
}
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill $server; rm -rf "$work"' EXIT
if [ -z "${BASE:-}" ]; then
    cargo build --release --bin petnet-serve
    target=${CARGO_TARGET_DIR:-target}
    "$target/release/petnet-serve" --host 127.0.0.1 --port 18800 --metrics-addr off --log warn --feedback "$work/feedback" &
    server=$!
    BASE=http://127.0.0.1:18800/
    for _ in $(seq 100); do curl -sf "${BASE}readyz" >/dev/null && break; sleep 0.1; done
fi
npm install --silent --no-fund --no-audit --prefix "$work" playwright-core >/dev/null
BASE=$BASE MODULES="$work/" node scripts/page-test.mjs "${1:-examples/pictures/cat.jpg}" "${2:-$work}"
