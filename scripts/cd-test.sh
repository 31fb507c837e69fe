#!/usr/bin/env bash
# Applies the edit of .github/workflows/cd.yml to a copy of the repository and prints what ArgoCD would apply.
# Usage: scripts/cd-test.sh [sha256:DIGEST]; by default the digest of localhost/petnet-serve:local
set -euo pipefail
cd "$(dirname "$0")/.."
digest=${1:-$(podman image inspect --format '{{.Digest}}' localhost/petnet-serve:local)}
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git clone --quiet . "$copy/repository"
cd "$copy/repository"
git config user.name petnet && git config user.email petnet@localhost

deploy() { # as cd.yml has it
    scripts/set-image.sh "$digest"
    if git diff --quiet; then
        echo "it is there already"
        return
    fi
    git commit --all --quiet --message "Deploy $(git rev-parse --short=12 HEAD) [skip ci]"
}

deploy
git show --stat --patch --format='%s' HEAD
[ "$(git show --format= --numstat HEAD)" = "$(printf '1\t1\tk8s/overlays/cloud/kustomization.yaml')" ]
kubectl kustomize k8s/overlays/cloud >"$copy/rendered.yaml"
grep -F "image: ghcr.io/petnet/petnet-serve@$digest" "$copy/rendered.yaml"
[ "$(deploy)" = "it is there already" ]
! scripts/set-image.sh latest 2>/dev/null
echo "one line changed, rendered, and nothing the second time"
