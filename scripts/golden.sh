#!/usr/bin/env bash
# Writes the fixtures of the golden tests (petnet/tests/golden) with PyTorch, Pillow and scikit-learn. Run after a change of
# scripts/golden.py only: the committed fixtures are what petnet is compared with.
# Usage: scripts/golden.sh [FOLDER, default petnet/tests/golden]
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$(scripts/peers-venv.sh)
"$venv/bin/python" scripts/golden.py "${1:-petnet/tests/golden}"
