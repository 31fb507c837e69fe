#!/usr/bin/env bash
# The library's public items with all CPU features, one a line, for review: `docs/public-api.txt`. A change of it in
# a pull request is a change of the API that others depend on. Types of burn may occur below `petnet::burn` only.
# Usage: scripts/public-api.sh [--check]
set -euo pipefail
cd "$(dirname "$0")/.."
version=0.52.0
tools=${PETNET_TOOLS:-target/tools}
[ -x "$tools/bin/cargo-public-api" ] ||
    cargo install --quiet --locked cargo-public-api --version "$version" --root "$tools"
work=$(mktemp)
trap 'rm -f "$work" "$work.log"' EXIT
# The tool reads rustdoc's JSON, which nightly compilers write.
RUSTUP_TOOLCHAIN="${PETNET_NIGHTLY:-nightly}" "$tools/bin/cargo-public-api" -p petnet -sss --features mlflow,onnx,train \
    >"$work" 2>"$work.log" || { cat "$work.log" >&2 && exit 1; }
if grep -vE '^[^:]*petnet::burn(::|$)|^impl.* for petnet::burn::' "$work" | grep -E '\bburn[a-z_]*::'; then
    echo "types of burn's outside petnet::burn" >&2
    exit 1
fi
if [ "${1:-}" = --check ]; then
    diff docs/public-api.txt "$work" && exit 0
    echo "the public API is another than docs/public-api.txt says: scripts/public-api.sh writes it" >&2
    exit 1
fi
cp "$work" docs/public-api.txt
wc -l docs/public-api.txt
