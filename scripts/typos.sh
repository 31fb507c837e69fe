#!/usr/bin/env bash
# Checks the spelling of all files with typos (typos.toml). Takes `typos` from PATH, else from a Python environment below
# ~/.cache that it makes; says so and succeeds where neither can be had.
# Usage: scripts/typos.sh [ARGUMENTS of typos]
set -euo pipefail
cd "$(dirname "$0")/.."
version=1.52.0
folder=${XDG_CACHE_HOME:-$HOME/.cache}/petnet-tools/typos-$version
if command -v typos >/dev/null; then
    exec typos "$@"
fi
if [ ! -x "$folder/bin/typos" ]; then
    { python3 -m venv "$folder" && "$folder/bin/pip" install --quiet --disable-pip-version-check "typos==$version"; } >&2 || {
        rm -rf "$folder"
        echo "skipped: typos is not installed and cannot be; spelling was NOT checked" >&2
        exit 0
    }
fi
exec "$folder/bin/typos" "$@"
