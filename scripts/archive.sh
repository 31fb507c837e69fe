#!/usr/bin/env bash
# Prints the path of the archive of cats and dogs: the argument, else $PETNET_ARCHIVE, else the file that `petnet-train
# download` writes. Other scripts call it.
# Usage: scripts/archive.sh [ARCHIVE.zip]
set -euo pipefail
archive=${1:-${PETNET_ARCHIVE:-$(dirname "$0")/../data/raw/cats-vs-dogs.zip}}
if [ ! -f "$archive" ]; then
    echo "usage: set PETNET_ARCHIVE=ARCHIVE.zip (folders Cat and Dog), or run \`petnet-train download\` first; no file $archive" >&2
    exit 2
fi
realpath "$archive"
