#!/usr/bin/env bash
# Compares the public API of the library with that of the last release, the newest tag v*: a breaking change needs a new minor
# version before 1.0, a new major one after. Installs cargo-semver-checks.
# Usage: scripts/semver.sh
set -euo pipefail
cd "$(dirname "$0")/.."
version=0.51.0
tag=$(git describe --tags --abbrev=0 --match 'v*' 2>/dev/null || true)
if [ -z "$tag" ]; then
    echo "no tag v*: there is no release to compare with"
    exit 0
fi
tools=${PETNET_TOOLS:-target/tools}
[ -x "$tools/bin/cargo-semver-checks" ] ||
    cargo install --quiet --locked cargo-semver-checks --version "$version" --root "$tools"
PATH=$PWD/$tools/bin:$PATH cargo semver-checks --package petnet --baseline-rev "$tag" --only-explicit-features --features mlflow,onnx,pretrained,train
