#!/usr/bin/env bash
# Writes the digest of a new image into the cloud overlay, which ArgoCD watches. Changes that line only; a digest that is already
# there changes nothing.
# Usage: scripts/set-image.sh sha256:<64 hex digits> [FILE]
set -euo pipefail
file=${2:-$(dirname "$0")/../k8s/overlays/cloud/kustomization.yaml}
line='^    digest: sha256:[0-9a-f]{64}$'

if ! [[ ${1:-} =~ ^sha256:[0-9a-f]{64}$ ]]; then
    echo "usage: set-image.sh sha256:<64 hex digits> [FILE]" >&2
    exit 2
fi
if [[ $(grep -cE "$line" "$file") != 1 ]]; then
    echo "error: $file should have one line 'digest: sha256:...'" >&2
    exit 1
fi
sed -i -E "s/$line/    digest: $1/" "$file"
