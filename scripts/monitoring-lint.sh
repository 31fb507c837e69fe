#!/usr/bin/env bash
# Checks the configuration of Prometheus and Alertmanager, runs the tests of the rules, and compares the dashboards with
# docs/metrics.md. Needs promtool, amtool and python3.
# Usage: scripts/monitoring-lint.sh
set -euo pipefail
cd "$(dirname "$0")/.."
promtool check config configs/prometheus/prometheus.yml
promtool test rules configs/prometheus/tests/*.yml
amtool check-config configs/prometheus/alertmanager.yml
python3 scripts/dashboards_check.py lint
