#!/usr/bin/env bash
# Checks k8s/ without a cluster: rendered, validated against the schemas of several Kubernetes versions and of the
# custom resources (CRD_SCHEMAS, a folder of JSON schemas such as application_v1alpha1.json; those checks are skipped where it is not
# set) and against the service's settings. The same checks must then refuse copies with one fault each. Needs kubectl and python3;
# runs promtool where it is installed.
# Usage: [CRD_SCHEMAS=FOLDER] scripts/k8s-check.sh
set -euo pipefail
cd "$(dirname "$0")/.."
schemas=${CRD_SCHEMAS:-}
tools=${TMPDIR:-/tmp}/petnet-k8s
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
[[ -n $schemas ]] || echo "usage: CRD_SCHEMAS=FOLDER of JSON schemas checks the custom resources too; they are skipped" >&2
[[ -z $schemas || -d $schemas ]] || { echo "error: CRD_SCHEMAS: no folder $schemas" >&2; exit 2; }

if ! [[ -x $tools/bin/yamllint ]]; then
    python3 -m venv "$tools"
    "$tools/bin/pip" install -q uv
    "$tools/bin/uv" pip install -q --compile-bytecode --python "$tools/bin/python" \
        jsonschema kubernetes-validate pyyaml yamllint
fi

# expect NAME COMMAND..: one line, and what the command said where it failed.
expect() {
    local name=$1 said
    shift
    if said=$("$@" 2>&1); then
        echo "ok    $name"
    else
        printf 'FAIL  %s\n%s\n' "$name" "$said"
        failed=1
    fi
}

# broken FILE SED CHECK: a copy of k8s/ with one thing changed, which that check must refuse.
broken() {
    local said
    rm -rf "$work/k8s"
    cp -r k8s "$work/k8s"
    sed -i -E "$2" "$work/k8s/$1"
    if cmp -s "k8s/$1" "$work/k8s/$1"; then
        echo "FAIL  $1 has nothing to break with $2"
        failed=1
    elif said=$("$tools/bin/python" scripts/k8s_check.py "${schemas:-none}" "$work/k8s" "$3" 2>&1); then
        echo "FAIL  $1 with $2 is not refused"
        failed=1
    elif [[ $said == "FAIL  $3: "* ]]; then
        said=${said%%$'\n'*}
        echo "ok    refused $1 with $2: ${said:6:110}"
    else
        printf 'FAIL  %s with %s is refused for another reason\n%s\n' "$1" "$2" "$said"
        failed=1
    fi
}

# shellcheck disable=SC2329  # `expect` calls it, and the next
set_image() {
    local file=$work/kustomization.yaml digest wrong
    digest=sha256:$(printf '%064d' 7)
    cp k8s/overlays/cloud/kustomization.yaml "$file"
    for wrong in '' latest "${digest%?}" "${digest}0" "$digest/e" "x$digest" "sha512:${digest#*:}"; do
        if scripts/set-image.sh "$wrong" "$file" 2>/dev/null; then
            echo "takes '$wrong'"
            return 1
        fi
    done
    cmp "$file" k8s/overlays/cloud/kustomization.yaml
    scripts/set-image.sh "$digest" "$file"
    scripts/set-image.sh "$digest" "$file"
    [[ $(diff k8s/overlays/cloud/kustomization.yaml "$file" | grep '^>') == ">     digest: $digest" ]]
}

# Of the canary's analysis, with names in place of its arguments, and of the rules as they are applied.
# shellcheck disable=SC2329
queries() {
    "$tools/bin/python" - >"$work/queries.yml" <<'PY'
import re, yaml
template = yaml.safe_load(open("k8s/rollouts/analysis.yaml"))
queries = [re.sub("{{.*?}}", "x", metric["provider"]["prometheus"]["query"]) for metric in template["spec"]["metrics"]]
rules = [{"record": f"query{n}", "expr": query} for n, query in enumerate(queries)]
print(yaml.safe_dump({"groups": [{"name": "analysis", "rules": rules}]}))
PY
    promtool check rules "$work/queries.yml"
    "$tools/bin/python" -c 'import yaml; print(yaml.safe_dump(yaml.safe_load(open("k8s/base/prometheusrule.yaml"))["spec"]))' \
        >"$work/rule.yml"
    promtool check rules "$work/rule.yml"
}

find k8s -name '*.yaml' ! -name prometheusrule.yaml >"$work/files"
expect yamllint xargs "$tools/bin/yamllint" -s -d '{extends: default, rules: {line-length: {max: 200},
    document-start: disable, comments: {min-spaces-from-content: 1}}}' <"$work/files"
"$tools/bin/python" scripts/k8s_check.py "${schemas:-none}" k8s || failed=1
expect prometheusrule.py scripts/prometheusrule.py --check
expect set-image.sh set_image
if command -v promtool >/dev/null; then
    expect promtool queries
fi

broken overlays/local/kustomization.yaml 's/^replicas:/replcas:/' render
broken base/hpa.yaml 's/maxReplicas/maxReplcas/' schemas_of_kubernetes
broken base/deployment.yaml 's/revisionHistoryLimit/replcas/' schemas_of_kubernetes
broken jobs/sweep.yaml 's/completions:/completons:/' schemas_of_kubernetes
if [[ -n $schemas ]]; then
    broken rollouts/rollout.yaml 's/setWeight/setWieght/' schemas_of_custom_resources
    broken kserve/inferenceservice.yaml 's/minReplicas/minReplcas/' schemas_of_custom_resources
    broken argocd-application.yaml 's/selfHeal/selfHeel/' schemas_of_custom_resources
fi
broken base/deployment.yaml '/^            limits:/,/memory/{/memory/d}' containers
broken base/deployment.yaml 's/readOnlyRootFilesystem: true/readOnlyRootFilesystem: false/' containers
broken base/deployment.yaml 's/readinessProbe/startupProbe/' containers
broken jobs/batch-predict.yaml 's/name: JOB_COMPLETION_INDEX/name: JOB_INDEX/' containers
broken jobs/train-gpu.yaml 's/petnet-train:.*/petnet-train:latest/' containers
broken overlays/cloud/kustomization.yaml 's/digest: .*/newTag: "1"/' containers
broken base/service.yaml 's/selector: .*/selector: {app: petnet}/' references
broken base/service.yaml 's/targetPort: http/targetPort: web/' references
broken base/ingress.yaml 's/name: http$/name: https/' references
broken rollouts/services.yaml 's/component: canary/component: serve/' references
broken rollouts/rollout.yaml 's/templateName: .*/templateName: canary/' references
broken argocd-application.yaml 's/overlays\/cloud$/overlays\/prod/' references
broken base/settings.env 's/PETNET_MODEL_CACHE/PETNET_MODELCACHE/' variables
broken base/settings.env 's/PETNET_GRACE=.*/PETNET_GRACE=20s/' shutdown
broken base/settings.env 's/PETNET_MAX_PIXELS=.*/PETNET_MAX_PIXELS=50000000/' sizes
broken base/ingress.yaml 's/body-size: 16m/body-size: 8m/' sizes
broken base/pdb.yaml 's/maxUnavailable: 1/minAvailable: 2/' evictions_and_scaling
broken base/hpa.yaml 's/petnet_queue_fill/petnet_queue/' evictions_and_scaling
broken base/servicemonitor.yaml 's/regex: endpoint/regex: nothing/' monitoring
broken base/servicemonitor.yaml 's/replacement: petnet$/replacement: app/' monitoring
broken jobs/sweep.yaml 's/learning_rate/learning_rat/' grid
exit "$failed"
