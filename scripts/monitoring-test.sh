#!/usr/bin/env bash
# The service and a training under a real Prometheus and Alertmanager: every metric family present and moving, every
# query of every dashboard answered, two alerts firing and resolved.
#
#   scripts/monitoring-test.sh [ARCHIVE.zip] [WORK FOLDER]      ARCHIVE.zip is $PETNET_ARCHIVE by default
#
# As root on Debian; installs prometheus, prometheus-alertmanager and Pillow. Uses 127.0.0.1:18000, 18081, 19464,
# 19090, 19093 and 19094. Writes WORK FOLDER/dashboards.png. Alerts wait seconds here, not minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
here=$PWD
archive=$(scripts/archive.sh "${1:-}")
work=$(realpath -m "${2:-/tmp/petnet-monitoring}")
mkdir -p "$work"

say() { echo "== $*"; }
started=()
trap 'for group in "${started[@]}"; do kill -- "-$group" 2>/dev/null || true; done' EXIT
launch() { # log, command: in a process group of its own
    local log=$work/run/$1.log && shift
    setsid "$@" >>"$log" 2>&1 &
    last=$!
    started+=("$last")
}
until_ok() { # seconds, what, command
    local end=$((SECONDS + $1)) what=$2 && shift 2
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || { echo "not within the time: $what"; return 1; }
        sleep 0.5
    done
    echo "seen: $what"
}

say "tools"
command -v prometheus >/dev/null && command -v prometheus-alertmanager >/dev/null && command -v chromium >/dev/null ||
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends prometheus prometheus-alertmanager chromium; }
[ -x "$work/venv/bin/python" ] || { python3 -m venv "$work/venv" && "$work/venv/bin/pip" -q install pillow==12.1.0; }
cargo build --release --bin petnet-train --bin petnet-serve
train=$here/target/release/petnet-train serve=$here/target/release/petnet-serve

say "files"
scripts/monitoring-lint.sh

say "service, training, Prometheus, Alertmanager"
rm -rf "$work/run" && mkdir -p "$work/run" && cd "$work/run"
traffic() { "$work/venv/bin/python" "$here/scripts/monitoring_traffic.py" "$@"; }
traffic unpack "$archive" photos
"$train" prepare --raw photos/train --out data --size 64 --quiet
serve_up() {
    launch serve "$serve" --host 127.0.0.1 --port 18000 --metrics-addr 127.0.0.1:18081 --feedback feedback --drift-window 300 \
        --queue 8 --queue-timeout 20ms --session-idle 20s --log-format json
    server=$last
    until_ok 20 "the service" curl -sf 127.0.0.1:18000/readyz
}
serve_up
launch train env MLFLOW_TRACKING_URI=off "$train" fit --data data --out models --epochs 400 --metrics-addr 127.0.0.1:19464 \
    --set model.name=simple_cnn --set init=none --set image_size=64
launch pager python3 "$here/scripts/monitoring_traffic.py" receive 19094 pages.jsonl
mkdir rules
for file in rules alerts; do sed -E 's/^( +for: ).*/\12s/; s/^( +interval: ).*/\11s/' "$here/configs/prometheus/$file.yml" >"rules/$file.yml"; done
sed -E 's/app:8081/127.0.0.1:18081/; s/app:8000/127.0.0.1:18000/; s/trainer:9464/127.0.0.1:19464/; s/alertmanager:9093/127.0.0.1:19093/
    s/localhost:9090/127.0.0.1:19090/; s/(scrape_interval|scrape_timeout|evaluation_interval): .*/\1: 1s/' \
    "$here/configs/prometheus/prometheus.yml" >rules/prometheus.yml
sed -E 's/receiver:8080/127.0.0.1:19094/; s/(group_wait|group_interval): .*/\1: 1s/; s/receivers:/receivers:/' \
    "$here/configs/prometheus/alertmanager.yml" >rules/alertmanager.yml
sed -i '1i global: {resolve_timeout: 10s}' rules/alertmanager.yml
launch alertmanager prometheus-alertmanager --config.file rules/alertmanager.yml --storage.path am --cluster.listen-address= \
    --web.listen-address 127.0.0.1:19093
launch prometheus prometheus --config.file rules/prometheus.yml --storage.tsdb.path tsdb --web.listen-address 127.0.0.1:19090 \
    --log.level warn
until_ok 30 "Prometheus" curl -sf 127.0.0.1:19090/-/ready
until_ok 30 "Alertmanager" curl -sf 127.0.0.1:19093/-/ready

"$train" smoke http://127.0.0.1:18000 --expect-version 0.1.0

say "mixed traffic: good, bad, overload, feedback, adoptions"
traffic mixed photos/test --seconds 75
curl -sf 127.0.0.1:18081/metrics >metrics.txt
traffic families metrics.txt
promtool check metrics <metrics.txt >lint.txt 2>&1 || true
# The reference's users know these two by their abbreviated unit.
! grep -vE '^(process_memory_usage_mb|gpu_memory_used_mb) metric names should not contain abbreviated units$' lint.txt
moving() {
    local value
    value=$(curl -sfG 127.0.0.1:19090/api/v1/query --data-urlencode "query=sum(increase($1[2m]))" | grep -oE '"[0-9.e+]+"\]' | tr -d '"]')
    awk -v value="${value:-0}" 'BEGIN { exit !(value > 0) }' && echo "moves: $1 by $value in 2 min"
}
for counter in api_requests_total api_errors_total api_predictions_total prediction_requests_total prediction_decisions_total prediction_errors_total \
    health_check_requests_total input_image_size_total preprocessing_images_total feedback_total pet_adoptions_total \
    api_request_latency_seconds_count batch_size_count model_prediction_confidence_count training_steps_total; do
    moving "$counter"
done

say "drift: night photos raise an alert, daylight ends it"
paged() { grep -q "\"status\": \"$2\".*\"$1\"" pages.jsonl; }
traffic night photos/test --count 400
until_ok 60 "PetnetDrift firing at the pager" paged PetnetDrift firing
traffic day photos/test --count 400
until_ok 90 "PetnetDrift resolved at the pager" paged PetnetDrift resolved

say "dashboards"
# A first look back of 30 days is recorded once a minute.
until_ok 150 "every query of every panel answered" python3 "$here/scripts/dashboards_check.py" query http://127.0.0.1:19090
python3 "$here/scripts/dashboards_check.py" query http://127.0.0.1:19090
python3 "$here/scripts/dashboards_check.py" draw http://127.0.0.1:19090 dashboards.html
chromium --headless=new --no-sandbox --disable-gpu --hide-scrollbars --window-size=1500,4200 --user-data-dir="$work/chromium" \
    --screenshot="$work/dashboards.png" "file://$work/run/dashboards.html" >/dev/null 2>&1
test -s "$work/dashboards.png"

say "the service is killed and comes back: nothing of the feedback is lost"
curl -sf 127.0.0.1:18000/feedback/export >before.jsonl
kill -KILL "$server"
until_ok 60 "PetnetDown firing at the pager" paged PetnetDown firing
serve_up
until_ok 60 "PetnetDown resolved at the pager" paged PetnetDown resolved
curl -sf 127.0.0.1:18000/feedback/export | cmp - before.jsonl
echo "kept: $(wc -l <before.jsonl) labels"

say "the labels go into the next data set"
"$train" prepare --raw photos/test --labels before.jsonl --out corrected --size 64 --quiet
say "all passed; look at $work/dashboards.png"
