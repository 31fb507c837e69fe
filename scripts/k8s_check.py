#!/usr/bin/env python3
"""Checks a folder of manifests without a cluster, one line a check: k8s_check.py CRD_SCHEMAS K8S [CHECK..]"""

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import jsonschema
import kubernetes_validate
import yaml

ROOT = Path(__file__).resolve().parent.parent
SCHEMAS, K8S = Path(sys.argv[1]), Path(sys.argv[2])
VERSIONS = ["1.30", "1.31", "1.32", "1.33", "1.34"]
BUILT_IN = re.compile(r"v1|(apps|batch|policy|autoscaling|networking\.k8s\.io)/v\d")
NO_SCHEMA = {"AnalysisTemplate", "Experiment"}
# Read by libraries inside petnet-serve, and by KServe.
OTHER_VARIABLES = re.compile(r"RAYON_NUM_THREADS|OTEL_\w+|MLFLOW_TRACKING_\w+|PROTOCOL")
# Measured: bytes a pixel while the most expensive image is decoded, and bytes of the process apart from images.
DECODING, PROCESS = 12, 96 << 20
# Labels that the Prometheus operator puts on every target.
TARGET_LABELS = {"namespace", "service", "pod", "container", "endpoint", "job", "instance"}
POD = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
CONTAINER = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def read(k8s):
    """{what is applied together: [resources]}: each overlay as it renders, and each file of its own."""
    found = {}
    for overlay in sorted((k8s / "overlays").iterdir()):
        rendered = subprocess.run(["kubectl", "kustomize", overlay], capture_output=True, text=True)
        if rendered.returncode:
            sys.exit(f"FAIL  render: {overlay.name}: {rendered.stderr.strip()}")
        found[overlay.name] = list(yaml.safe_load_all(rendered.stdout))
    for path in [k8s / "argocd-application.yaml", *sorted(k8s.glob("jobs/*.yaml")), *k8s.glob("kserve/inference*.yaml")]:
        found[path.name] = list(yaml.safe_load_all(path.read_text()))
        for doc in of(found[path.name], "Experiment").values():
            found["trial"] = [doc["spec"]["trialTemplate"]["trialSpec"] | {"metadata": {"name": "of Katib"}}]
    return found


def every(m):
    for group, docs in m.items():
        for doc in docs:
            yield f"{group}: {doc['kind']} {doc['metadata']['name']}", group, doc


def of(docs, kind):
    return {doc["metadata"]["name"]: doc for doc in docs if doc["kind"] == kind}


def pods(m):
    """(where, group, kind, labels, pod spec, its one container) of whatever makes pods."""
    for where, group, doc in every(m):
        template = doc["spec"].get("template", {}) if doc["kind"] in ("Deployment", "Job") else {}
        spec = template.get("spec") or (doc["kind"] == "InferenceService" and doc["spec"]["predictor"])
        if spec:
            yield where, group, doc["kind"], template.get("metadata", {}).get("labels", {}), spec, spec["containers"][0]


def served(m):
    """(where, group, pod spec, container, environment) of all that runs petnet-serve."""
    for where, group, _, _, pod, c in pods(m):
        if "petnet-serve" in c["image"]:
            named = [each["configMapRef"]["name"] for each in c.get("envFrom", ()) if "configMapRef" in each]
            env = {key: value for name in named for key, value in of(m[group], "ConfigMap")[name]["data"].items()}
            yield where, group, pod, c, env | {each["name"]: each["value"] for each in c.get("env", ())}


def size(text):
    number, unit = re.fullmatch(r"(\d+)(\w*)", text).groups()
    return int(number) << {"": 0, "k": 10, "m": 20, "Ki": 10, "Mi": 20, "Gi": 30}[unit]


def schemas_of_kubernetes(m):
    for where, _, doc in every(m):
        if BUILT_IN.fullmatch(doc["apiVersion"]):
            for version in VERSIONS:
                try:
                    kubernetes_validate.validate(doc, version, strict=True)
                except kubernetes_validate.ValidationError as error:
                    yield f"{where}, Kubernetes {version}: {error.message}"


@cache
def validator(name):
    return jsonschema.Draft7Validator(json.loads((SCHEMAS / name).read_text()))


def schemas_of_custom_resources(m):
    for where, _, doc in every(m):
        if not BUILT_IN.fullmatch(doc["apiVersion"]) and doc["kind"] not in NO_SCHEMA:
            schema = validator(f"{doc['kind'].lower()}_{doc['apiVersion'].split('/')[1]}.json")
            yield from (f"{where}: {error.json_path}: {error.message}" for error in schema.iter_errors(doc))


def containers(m):
    version = re.search(r'^version = "(.+)"', (ROOT / "Cargo.toml").read_text(), re.M)[1]
    for where, group, kind, _, pod, c in pods(m):
        image, digest, tag = c["image"], re.search(r"@sha256:[0-9a-f]{64}$", c["image"]), c["image"].partition(":")[2]
        holes = set(re.findall(r"\$\((\w+)\)", " ".join(c.get("args", ())))) - {each["name"] for each in c.get("env", ())}
        mounts = {each["name"] for each in c.get("volumeMounts", ())} ^ {each["name"] for each in pod.get("volumes", ())}
        faults = {
            "more than one container": len(pod["containers"]) > 1,
            "the pod's securityContext is not complete": not POD.items() <= (pod.get("securityContext") or {}).items(),
            "the container's securityContext is not complete": c.get("securityContext") != CONTAINER,
            "it has a token of the API server": pod.get("automountServiceAccountToken") is not False,
            "it has variables of other services": pod.get("enableServiceLinks") is not False,
            "cpu and memory are not requested": not {"cpu", "memory"} <= set(c["resources"].get("requests") or {}),
            "memory is not limited": "memory" not in (c["resources"].get("limits") or {}),
            "it runs for long and has no probes": kind != "Job" and not {"livenessProbe", "readinessProbe"} <= set(c),
            f"{mounts} is not both a volume and mounted": mounts,
            f"{holes} in args is not declared in env": holes,
            f"{image} has no digest": group.startswith("cloud") and not digest,
            f"{image} has no version": not digest and tag in ("", "latest"),
            f"{image} is not {version}": image.startswith("ghcr.io/petnet/") and not digest and tag != version,
        }
        yield from (f"{where}: {fault}" for fault, found in faults.items() if found)


def links(docs):
    """(from, kind, name) of every reference from one resource to another."""
    services = of(docs, "Service")
    for name, doc in services.items():
        yield from ((f"Service {name}", "pod with port", port["targetPort"]) for port in doc["spec"]["ports"])
    for name, doc in of(docs, "HorizontalPodAutoscaler").items():
        yield f"HorizontalPodAutoscaler {name}", doc["spec"]["scaleTargetRef"]["kind"], doc["spec"]["scaleTargetRef"]["name"]
    for name, doc in of(docs, "Ingress").items():
        for path in (path for rule in doc["spec"]["rules"] for path in rule["http"]["paths"]):
            to = path["backend"]["service"]
            yield f"Ingress {name}", "port", f"{to['name']}:{to['port']['name']}"
    for name, doc in of(docs, "ServiceMonitor").items():
        labels = doc["spec"]["selector"]["matchLabels"].items()
        hit = [service for service, about in services.items() if labels <= about["metadata"]["labels"].items()]
        # With two, every pod counts twice.
        yield f"ServiceMonitor {name}", "one service", len(hit)
        yield from ((f"ServiceMonitor {name}", "port", f"{hit[0]}:{each['port']}") for each in doc["spec"]["endpoints"] if hit)
    for name, doc in of(docs, "Rollout").items():
        canary, work = doc["spec"]["strategy"]["canary"], doc["spec"]["workloadRef"]
        to = [(work["kind"], work["name"]), ("Service", canary["stableService"]), ("Service", canary["canaryService"])]
        to += [("Ingress", canary["trafficRouting"]["nginx"]["stableIngress"])]
        to += [("AnalysisTemplate", each["templateName"]) for each in canary["analysis"]["templates"]]
        yield from ((f"Rollout {name}", *pair) for pair in to)


def references(m):
    for group, docs in m.items():
        near = [each for each in pods(m) if each[1] in (group, "train-gpu.yaml")]
        there = {(doc["kind"], doc["metadata"]["name"]) for doc in docs} | {("one service", 1)}
        there |= {("pod with port", port["name"]) for each in near for port in each[5].get("ports", ())}
        there |= {("port", f"{name}:{port['name']}") for name, s in of(docs, "Service").items() for port in s["spec"]["ports"]}
        yield from (f"{group}: {who}: no {kind} {name}" for who, kind, name in links(docs) if (kind, name) not in there)
        for kind, key in {"Service": "selector", "PodDisruptionBudget": "selector", "NetworkPolicy": "podSelector"}.items():
            for name, doc in of(docs, kind).items():
                wanted = doc["spec"][key] if kind == "Service" else doc["spec"][key].get("matchLabels", {})
                if not any(wanted.items() <= each[3].items() for each in near):
                    yield f"{group}: {kind} {name} selects no pods"
    for name, doc in of(m["argocd-application.yaml"], "Application").items():
        if Path(doc["spec"]["source"]["path"]).name not in m:
            yield f"{name}: no {doc['spec']['source']['path']}"


def variables(m):
    real = set(re.findall(r'env = "(\w+)"', (ROOT / "petnet-serve/src/settings/mod.rs").read_text()))
    comment = re.findall(r"# - (\w+)=", (K8S / "overlays/cloud/kustomization.yaml").read_text())
    for where, *_, env in [*served(m), ("cloud, as a comment", comment)]:
        unknown = (name for name in env if name not in real and not OTHER_VARIABLES.fullmatch(name))
        yield from (f"{where}: petnet-serve knows no {name}" for name in unknown)


def shutdown(m):
    for where, _, pod, c, env in served(m):
        drain, grace = (int(env[key].removesuffix("s")) for key in ("PETNET_DRAIN_DELAY", "PETNET_GRACE"))
        if pod["terminationGracePeriodSeconds"] <= drain + grace:
            yield f"{where}: killed after {pod['terminationGracePeriodSeconds']} s, in the {drain} + {grace} that it may take"
        if drain <= c["readinessProbe"]["periodSeconds"] * c["readinessProbe"]["failureThreshold"]:
            yield f"{where}: the drain is over before the readiness probe notices"


def sizes(m):
    for where, group, pod, c, env in served(m):
        # The memory budget of petnet-serve: an eighth stays free, two thirds of the rest are for decoding.
        limit = c["resources"]["limits"]["memory"]
        decoding = (size(limit) * 7 // 8 - PROCESS) * 2 // 3
        if decoding < DECODING * int(env["PETNET_MAX_PIXELS"]):
            yield f"{where}: {limit} leave {decoding >> 20} MiB for decoding, less than the largest photo takes"
        data = next(each["emptyDir"]["sizeLimit"] for each in pod["volumes"] if each["name"] == "data")
        if size(data) < int(env["PETNET_FEEDBACK_MAX_BYTES"]) + (64 << 20):
            yield f"{where}: the feedback store may grow beyond {data}"
        for name, doc in of(m[group], "Ingress").items():
            if size(doc["metadata"]["annotations"]["nginx.ingress.kubernetes.io/proxy-body-size"]) != int(env["PETNET_MAX_BODY"]):
                yield f"{where}: Ingress {name} and PETNET_MAX_BODY differ"


def evictions_and_scaling(m):
    offered = re.findall(r"as: (\w+)", (K8S / "addons/prometheus-adapter-values.yaml").read_text())
    for group, docs in m.items():
        autoscalers = of(docs, "HorizontalPodAutoscaler").items()
        least = min((doc["spec"]["minReplicas"] for _, doc in autoscalers), default=1)
        for name, doc in of(docs, "PodDisruptionBudget").items():
            if doc["spec"].get("maxUnavailable") == 0 or doc["spec"].get("minAvailable", 0) >= least:
                yield f"{group}: {name} allows no eviction"
        for name, doc in autoscalers:
            asked = {each["pods"]["metric"]["name"] for each in doc["spec"]["metrics"] if each["type"] == "Pods"}
            yield from (f"{group}: {name}: the adapter offers no {metric}" for metric in asked.difference(offered))
    yield from (f"local needs {doc['kind']}" for doc in m["local"] if not BUILT_IN.fullmatch(doc["apiVersion"]))


def monitoring(m):
    rows = [line.split("|") for line in (ROOT / "docs/metrics.md").read_text().splitlines() if line.count("|") > 5]
    clash = {label for row in rows for label in re.findall(r"`(\w+)`", row[4])} & TARGET_LABELS
    jobs = re.findall(r'job=~?"([^"]+)"', (K8S / "base/prometheusrule.yaml").read_text())
    for where, _, doc in every(m):
        if doc["kind"] == "ServiceMonitor":
            steps = [each["relabelings"] for each in doc["spec"]["endpoints"]]
            made = {step["replacement"] for each in steps for step in each if step.get("targetLabel") == "job"}
            yield from (f"{where}: no job {job}, as rules want" for job in set("|".join(jobs).split("|")) - made)
            for each in steps:
                kept = clash - {step["regex"] for step in each if step.get("action") == "labeldrop"}
                yield from (f"{where}: the operator's label {label} hides ours" for label in kept)


def grid(m):
    known = set(yaml.safe_load((ROOT / "configs/train.yaml").read_text()))
    points = of(m["sweep.yaml"], "ConfigMap")["petnet-sweep"]["data"]
    yield from (f"{name}: no setting {key}" for name, text in points.items() for key in set(yaml.safe_load(text)) - known)
    if of(m["sweep.yaml"], "Job")["petnet-sweep"]["spec"]["completions"] != len(points):
        yield f"{len(points)} points, and another number of completions"


CHECKS = [schemas_of_kubernetes, schemas_of_custom_resources, containers, references, variables, shutdown, sizes]
CHECKS += [evictions_and_scaling, monitoring, grid]


def main():
    wanted, manifests, failed = sys.argv[3:], read(K8S), False
    for check in CHECKS:
        if wanted and check.__name__ not in wanted:
            continue
        if check is schemas_of_custom_resources and not SCHEMAS.is_dir():
            print(f"skip  {check.__name__}: CRD_SCHEMAS is not set")
        else:
            faults = [f"FAIL  {check.__name__}: {fault}" for fault in check(manifests)]
            failed |= bool(faults)
            print(*faults or [f"ok    {check.__name__}"], sep="\n")
    sys.exit(failed)


main()
