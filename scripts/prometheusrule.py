#!/usr/bin/env python3
"""Wraps configs/prometheus/{rules,alerts}.yml into k8s/base/prometheusrule.yaml; --check fails where that differs."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "k8s/base/prometheusrule.yaml"
HEAD = """\
# Written by scripts/prometheusrule.py from configs/prometheus/{rules,alerts}.yml: change those.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: petnet
  labels:
    # Label that kube-prometheus-stack selects by, if it was installed under this name.
    release: kube-prometheus-stack
spec:
  groups:
"""


def wrapped():
    """Both files have one key, `groups`; the lines below it are indented by two more columns."""
    text, names = HEAD, []
    for source in ("rules", "alerts"):
        groups = (ROOT / f"configs/prometheus/{source}.yml").read_text().split("\ngroups:\n", 1)[1]
        for line in groups.splitlines():
            if line.startswith("  - name: "):
                # A resource may not have two groups of one name, which two files may.
                name = line.removeprefix("  - name: ")
                line += "-alerts" * (name in names)
                names.append(name)
            text += f"  {line}\n" if line.strip() else "\n"
    return text


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        if not TARGET.is_file() or TARGET.read_text() != wrapped():
            sys.exit(f"error: {TARGET.relative_to(ROOT)} is not what scripts/prometheusrule.py writes; run it")
    elif sys.argv[1:]:
        sys.exit(__doc__)
    else:
        TARGET.write_text(wrapped())
