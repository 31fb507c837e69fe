#!/usr/bin/env bash
# Checks the spelling of all files with typos (typos.toml). Takes `typos` from PATH, else from a Python environment below
# ~/.cache that it makes; says so and succeeds where neither can be had.
# Usage: scripts/typos.sh [ARGUMENTS of typos], by default the whole repository
set -euo pipefail
cd "$(dirname "$0")/.."
version=1.52.0
# Folders whose names begin with a dot are searched only when they are named.
[ $# -gt 0 ] || set -- . .ci .github
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
