#!/usr/bin/env bash
# Tracking, registry and data versioning against the real programs: MLflow, DVC and a local S3.
#
#   scripts/tracking-test.sh [ARCHIVE.zip] [WORK FOLDER]      ARCHIVE.zip is $PETNET_ARCHIVE by default
#
# Installs pinned tools into WORK FOLDER/{mlflow,dvc,moto}, uses port 5001 (MLflow), 18000 (petnet-serve)
# and 5555 (moto) of the loopback, and writes screenshots to WORK FOLDER/shots.
set -euo pipefail
cd "$(dirname "$0")/.."
here=$PWD
archive=$(scripts/archive.sh "${1:-}")
work=$(realpath -m "${2:-/tmp/petnet-tracking}")
mkdir -p "$work/shots"
export MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false DVC_NO_ANALYTICS=1
export AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test

say() { echo "== $*"; }
started=()
stop() { kill -- "-$1" 2>/dev/null || true; }
trap 'for group in "${started[@]}"; do stop "$group"; done' EXIT

install() { # venv, packages
    local venv=$work/$1 && shift
    [ -x "$venv/bin/python" ] && return
    python3 -m venv "$venv" && "$venv/bin/pip" -q install uv
    "$venv/bin/uv" pip install -q --compile-bytecode --python "$venv/bin/python" "$@"
}
say "tools"
if [ ! -x "$work/mlflow/bin/mlflow" ]; then
    install mlflow mlflow-skinny==3.17.2 'Flask<4' 'Flask-CORS<7' 'sqlalchemy<3' alembic 'graphene<4' huey 'cryptography<51' \
        aiohttp gunicorn 'numpy<3' pandas
    "$work/mlflow/bin/uv" pip install -q --no-deps --compile-bytecode --python "$work/mlflow/bin/python" mlflow==3.17.2 \
        mlflow-tracing==3.17.2
fi
install dvc 'dvc[s3]==3.67.1'
install moto 'moto[server]==5.2.5'

cargo build --release --bin petnet-train --bin petnet-serve
train=$here/target/release/petnet-train
serve=$here/target/release/petnet-serve
run=$work/run && rm -rf "$run" && mkdir -p "$run" && cd "$run"

mlflow_up() {
    PATH=$work/mlflow/bin:$PATH setsid "$work/mlflow/bin/mlflow" server --host 127.0.0.1 --port 5001 \
        --backend-store-uri "sqlite:///$run/mlflow.db" --artifacts-destination "$run/artifacts" --workers 1 >>"$run/mlflow.log" 2>&1 &
    mlflow=$!
    started+=("$mlflow")
    for _ in $(seq 60); do curl -sf 127.0.0.1:5001/health >/dev/null && return; sleep 1; done
    echo "MLflow did not start" && return 1
}
check() { "$work/mlflow/bin/python" "$here/scripts/tracking_check.py" "$@"; }

say "a training, an evaluation and a champion on a real server"
mlflow_up
export MLFLOW_TRACKING_URI=http://127.0.0.1:5001
"$train" prepare --raw "$archive" --out data --quiet
# Several epochs, half a minute each.
printf 'model: simple_cnn\ninit: none\nfreeze: 0\nimage_size: 48\n' >tracked.yaml
"$train" fit --config tracked.yaml --data data --out first --epochs 3 --quiet
"$train" evaluate --model first/best.safetensors --data data --quiet
"$train" register --model first/best.safetensors --alias champion --stage Production
check registered

say "the service follows the champion"
PETNET_MODEL_CACHE=$run/cache setsid "$serve" --host 127.0.0.1 --port 18000 --metrics-addr off \
    --model models:/CatsDogsClassifier@champion --follow 1s 2>serve.log &
service=$!
started+=("$service")
sleep 3
version() { curl -s 127.0.0.1:18000/version | grep -o '"registry_version":"[0-9]*"' | head -1; }
[ "$(version)" = '"registry_version":"1"' ]
"$train" fit --config tracked.yaml --data data --out second --epochs 1 --quiet
"$train" evaluate --model second/best.safetensors --data data --out r2 --quiet
"$train" register --model second/best.safetensors --alias champion && { echo "a worse model took the place" && exit 1; }
"$train" register --model second/best.safetensors --alias champion --force
for _ in $(seq 10); do [ "$(version)" = '"registry_version":"2"' ] && break; sleep 1; done
[ "$(version)" = '"registry_version":"2"' ]
stop "$service"

say "killed, resumed without a server, the server back before the end, the rest by runs sync"
"$train" fit --config tracked.yaml --data data --out torn --epochs 2 --quiet &
torn=$!
sleep 15 && kill -9 $torn && wait $torn || true
"$train" runs list
stop "$mlflow" && sleep 3
"$train" fit --config tracked.yaml --data data --out torn --epochs 2 --quiet --resume &
torn=$!
sleep 10 && mlflow_up
wait $torn
MLFLOW_TRACKING_URI=mlruns "$train" fit --config tracked.yaml --data data --out offline --epochs 1 --quiet
"$train" runs sync && "$train" runs sync
check complete "$run/mlruns"

say "migrate-filestore"
PATH=$work/mlflow/bin:$PATH "$work/mlflow/bin/mlflow" migrate-filestore --source "$run/mlruns" --target "sqlite:///$run/migrated.db"
check migrated "sqlite:///$run/migrated.db"

say "pictures"
command -v chromium >/dev/null || apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null
page=$(check page)
shot() {
    chromium --headless=new --no-sandbox --disable-gpu --window-size=1500,1000 --virtual-time-budget=15000 \
        --user-data-dir="$work/chromium" --screenshot="$work/shots/$1.png" "$2" >/dev/null 2>&1
}
shot run "$page" && shot metrics "$page/model-metrics" && shot system "$page/system-metrics"
"$train" runs compare "$(cut -c1-8 first/run_id)" "$(cut -c1-8 torn/run_id)" --html compare.html
shot compare "file://$run/compare.html"

say "DVC"
export PATH=$work/dvc/bin:$PATH MLFLOW_TRACKING_URI=off CARGO_TARGET_DIR=$here/target
rm -rf "$work/clone" && git clone -q "$here" "$work/clone" && cd "$work/clone"
export PETNET_ARCHIVE=$archive
dvc repro
dvc repro 2>&1 | tee again && [ "$(grep -c "didn't change" again)" = 4 ]
echo 'num_epochs: 1' >>configs/quickstart.yaml
dvc status | tee status && grep -q '^train' status && ! grep -q '^prepare\|^download' status
git checkout -q configs/quickstart.yaml
setsid "$work/moto/bin/moto_server" -H 127.0.0.1 -p 5555 >"$run/moto.log" 2>&1 &
started+=("$!")
sleep 5 && curl -sX PUT http://127.0.0.1:5555/petnet-dvc >/dev/null
dvc remote add --local -d store s3://petnet-dvc/store
dvc remote modify --local store endpointurl http://127.0.0.1:5555
dvc remote modify --local store region us-east-1
dvc push models/dvc/best.safetensors reports/dvc/metrics.json
before=$(sha256sum <models/dvc/best.safetensors)
rm -rf .dvc/cache models reports && dvc pull models/dvc/best.safetensors reports/dvc/metrics.json
[ "$before" = "$(sha256sum <models/dvc/best.safetensors)" ]
say "all passed; pictures in $work/shots"
