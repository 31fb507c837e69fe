#!/usr/bin/env bash
# All of delivery, as root on Debian 12: image, container, compose, manifests, workflows, the edit of CD. Half an hour when
# cold; each part is a script of its own.
# Usage: scripts/ship-test.sh
set -euo pipefail
cd "$(dirname "$0")"
./container-test.sh all
./k8s-check.sh
./workflows-check.sh
./cd-test.sh
