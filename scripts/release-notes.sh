#!/usr/bin/env bash
# Prints the section of CHANGELOG.md for a version, and fails where it is missing or Cargo.toml has another version.
# Usage: scripts/release-notes.sh X.Y.Z
set -euo pipefail
cd "$(dirname "$0")/.."
version=${1:?usage: scripts/release-notes.sh X.Y.Z}
ours=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"$/\1/p' Cargo.toml)
[ "$version" = "$ours" ] || { echo "error: Cargo.toml has version $ours, not $version" >&2; exit 1; }
notes=$(awk -v head="## [$version]" 'index($0, "## [") == 1 { inside = index($0, head) == 1; next } inside' CHANGELOG.md)
[ -n "${notes//[[:space:]]/}" ] || { echo "error: CHANGELOG.md has no section for $version" >&2; exit 1; }
printf '%s\n' "$notes"
