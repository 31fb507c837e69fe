#!/usr/bin/env bash
# Builds and runs the images and the compose file without a Docker engine: buildah, podman and docker-compose of Debian 12.
#
#   scripts/container-test.sh image|train|run|compose|all|clean
#
#   image     builds the Dockerfile's last stage: size, contents, user
#   train     builds the trainer's stage; not part of `all`, since it compiles burn
#   run       runs it without privileges in 128 MB: answers, large images, peak memory, SIGTERM under load
#   compose   the whole docker-compose.yml: health, scraping, MLflow by its service's name
#   clean     removes what the script built
#
# As root. Where the registries of images cannot be reached, it builds stand-ins from Debian's packages, labelled as
# such and removed by `clean`. A stand-in for the image of Rust has this machine's toolchain.
# IMAGE=NAME builds, or with `run` tries, an image of another name; RUST_IMAGE=NAME is another builder; PULL=never goes
# to the stand-ins without asking a registry.
set -euo pipefail
cd "$(dirname "$0")/.."

image=${IMAGE:-localhost/petnet-serve:local}
limit_mb=40
port=${PORT:-18480}
project=petnet-test
work=$(mktemp -d)
debian=localhost/petnet-stand-in/debian:bookworm
certificates=/etc/ssl/certs/ca-certificates.crt

say() { echo "== $*"; }
fail() { echo "FAILED: $*" >&2 && exit 1; }
started=()
finish() {
    local status=$?
    [ ${#started[@]} = 0 ] || { dc down -v >/dev/null 2>&1 || true; kill "${started[@]}" 2>/dev/null || true; }
    podman rm -f -t 0 "$project" >/dev/null 2>&1 || true
    podman volume rm -f "$project" >/dev/null 2>&1 || true
    rm -rf "$work"
    exit "$status"
}
trap finish EXIT

tools() {
    [ "$(id -u)" = 0 ] || fail "needs root"
    local name missing=()
    for name in buildah podman runc skopeo mmdebstrap docker-compose iptables curl python3; do
        command -v "$name" >/dev/null || missing+=("$name")
    done
    [ ${#missing[@]} = 0 ] || {
        apt-get update -qq
        apt-get install -y -qq --no-install-recommends buildah podman crun runc fuse-overlayfs uidmap skopeo mmdebstrap \
            netavark aardvark-dns iptables docker-compose curl python3 >/dev/null
    }
    # crun does not start where the cgroups are of both versions; the default limits are above what a container may set.
    cat >"$work/containers.conf" <<'CONF'
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
[network]
network_backend = "netavark"
CONF
    export CONTAINERS_CONF=$work/containers.conf BUILDAH_ISOLATION=chroot
}

# Whether the real image is here or comes from its registry; a stand-in of before does not count as such.
real() {
    if podman image exists "$1"; then
        [ "$(podman image inspect --format '{{index .Labels "petnet.stand-in"}}' "$1")" != 1 ]
    else
        [ "${PULL:-}" != never ] && skopeo inspect --retry-times 0 "docker://$1" >/dev/null 2>&1 && podman pull -q "$1"
    fi
}

# Reads a Containerfile; the certificates let pip and cargo pass what inspects this machine's traffic, if anything does.
stand_in() {
    podman image exists "$1" && return
    say "stand-in for $1"
    { echo "FROM $debian"; cat; } >"$work/Containerfile"
    buildah bud -q --pull=never --format docker --label petnet.stand-in=1 --volume "$certificates:$certificates:ro" \
        -t "$1" -f "$work/Containerfile" "$work" >"$work/log" 2>&1 || { tail -20 "$work/log" && fail "stand-in for $1"; }
}

debian() {
    podman image exists "$debian" && return
    say "Debian, as a base of the stand-ins"
    mmdebstrap --quiet --variant=minbase --include=ca-certificates bookworm "$work/debian.tar"
    podman import -q --change LABEL=petnet.stand-in=1 "$work/debian.tar" "$debian" >/dev/null
}

# Prints the arguments that have the Dockerfile built.
bases() {
    local version rust=docker.io/library/rust:1.95-slim-bookworm base=docker.io/library/debian:bookworm-slim
    if [ -z "${RUST_IMAGE:-}" ] && real "$rust" >/dev/null && real "$base" >/dev/null; then return; fi
    debian >&2
    version=$(rustc --version | cut -d' ' -f2)
    rust=${RUST_IMAGE:-localhost/petnet-stand-in/rust:$version}
    if ! podman image exists "$rust"; then
        say "stand-in for the image of Rust, with this machine's $version" >&2
        stand_in localhost/petnet-stand-in/gcc:bookworm >&2 <<'FILE'
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
FILE
        local container
        container=$(buildah from --pull-never localhost/petnet-stand-in/gcc:bookworm)
        tar -C "$(rustc --print sysroot)" -c bin/cargo bin/rustc lib libexec \
            | tar -C "$(buildah mount "$container")/usr/local" -x --no-same-owner
        # Settings of this machine's cargo count in the image too.
        if [ -f "${CARGO_HOME:-$HOME/.cargo}/config.toml" ]; then
            buildah copy -q "$container" "${CARGO_HOME:-$HOME/.cargo}/config.toml" /usr/local/cargo/config.toml >/dev/null
        fi
        buildah config --env CARGO_HOME=/usr/local/cargo --label petnet.stand-in=1 "$container"
        buildah commit -q --rm "$container" "$rust" >/dev/null
    fi
    echo "--build-arg RUST_IMAGE=$rust --build-arg DEBIAN_IMAGE=$debian"
}

build_stage() { # stage, name
    local arguments
    arguments=$(bases)
    say "build $1 ${arguments:+with }$arguments"
    # The cache of crates lives on between runs (buildah keeps it beside its images), as do the layers.
    # shellcheck disable=SC2086 # several arguments, or none
    buildah bud --layers --format docker $arguments --volume "$certificates:$certificates:ro" \
        --build-arg "PETNET_COMMIT=$(git rev-parse HEAD)" --target "$1" -t "$2" -f Dockerfile .
}

image() {
    build_stage serve "$image"
    local bytes contents
    bytes=$(podman image inspect --format '{{.Size}}' "$image")
    say "size: $((bytes / 1000000)).$((bytes / 100000 % 10)) MB of at most $limit_mb MB"
    [ "$bytes" -le $((limit_mb * 1000000)) ] || fail "the image is too large"
    contents=$(podman save -q "$image" -o "$work/image.tar" --format docker-archive && mkdir -p "$work/layers" \
        && tar -C "$work/layers" -xf "$work/image.tar" && for layer in "$work"/layers/*.tar; do tar -tvf "$layer"; done)
    echo "$contents"
    ! grep -qE '^-..s|^-.....s|bin/|etc/shadow' <<<"$contents" || fail "a program or a set-uid file too many"
    [ "$(podman image inspect --format '{{.User}}' "$image")" = 65532:65532 ] || fail "another user than 65532"
    [ "$(podman image inspect --format '{{.HealthCheck.Test}}' "$image")" = '[CMD /petnet-serve healthcheck]' ] \
        || fail "no health check"
}

# Waits at most $1 seconds for a command to succeed.
until_ok() {
    local left=$1 && shift
    until "$@" >/dev/null 2>&1; do
        left=$((left - 1)) && [ $left -gt 0 ] || fail "not within its time: $*"
        sleep 1
    done
}

run() {
    say "run: read-only, no capabilities, user 65532, 128 MB, half a core"
    podman rm -f -t 0 "$project" >/dev/null 2>&1 || true
    podman volume rm -f "$project" >/dev/null 2>&1 || true
    # In a folder of its own: podman's monitor writes a file into it when memory runs out.
    (cd "$work" && podman run -d --no-healthcheck --name "$project" --read-only --read-only-tmpfs=false \
        --cap-drop=ALL --security-opt no-new-privileges --user 65532 -m 128m --memory-swap 128m --cpus 0.5 \
        -v "$project:/data" --tmpfs /tmp -p "127.0.0.1:$port:8000" \
        -e PETNET_MAX_BODY=8388608 \
        "$image" >/dev/null)
    local url=http://127.0.0.1:$port pid answer status
    until_ok 30 curl -sf "$url/readyz"
    pid=$(podman inspect --format '{{.State.Pid}}' "$project")
    status=$(cat "/proc/$pid/status")
    echo "$status" | grep -E '^(Uid|CapEff|CapBnd|NoNewPrivs|Seccomp):'
    grep -q '^Uid:.65532.65532.65532.65532' <<<"$status" || fail "another user"
    grep -q '^CapEff:.0000000000000000' <<<"$status" || fail "capabilities"
    grep -q '^CapBnd:.0000000000000000' <<<"$status" || fail "capabilities to gain"
    ! podman run --rm --entrypoint /bin/sh "$image" -c id 2>/dev/null || fail "a shell"
    ! podman run --rm --entrypoint id "$image" 2>/dev/null || fail "a program"
    echo "no shell, no id"

    answer=$(curl -sf -F file=@examples/pictures/cat.jpg "$url/predict")
    echo "$answer"
    grep -q '"predicted_class":"cat"' <<<"$answer" || fail "not a cat"
    grep -q '"feedback":true' <<<"$(curl -sf "$url/version")" || fail "no feedback store in /data"
    podman exec "$project" /petnet-serve healthcheck || fail "healthcheck says no"
    ! podman exec "$project" /petnet-serve healthcheck --url http://127.0.0.1:9/livez 2>/dev/null \
        || fail "healthcheck says yes to a closed port"
    echo "healthcheck: 0, and not 0 for a closed port"

    say "the largest images, four at a time, then clients until /readyz says no"
    python3 - "$url" "$project" examples/pictures/cat.jpg <<'PY'
# Clients stop as a load balancer would: half a second after /readyz says no. Up to there, nothing may fail.
import struct, subprocess, sys, threading, time, zlib
from urllib import error, request

url, container, photo = sys.argv[1], sys.argv[2], open(sys.argv[3], "rb").read()

def predict(body, kind):
    asked = request.Request(url + "/predict", body, {"Content-Type": kind})
    try:
        with request.urlopen(asked, timeout=60) as reply:
            return reply.status
    except error.HTTPError as refused:
        return refused.code
    except OSError as broken:
        return repr(broken)

def png(width, height):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    rows = (b"\0" + bytes(range(256)) * (width * 8 // 256)) * height
    head = struct.pack(">IIBBBBB", width, height, 16, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")

def together(count, work):
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads

big, answers = png(2048, 1562), []
for thread in together(4, lambda: answers.append(predict(big, "image/png"))):
    thread.join()
print(f"3.2 megapixels with 16 bits a channel, {len(big) / 1e6:.1f} MB: {answers}")
assert set(answers) <= {200, 503, 504} and 200 in answers, answers
for _ in range(3):
    assert predict(photo, "image/jpeg") == 200

end, answers, late = threading.Event(), [], 0
def client():
    while not end.is_set():
        answers.append(predict(photo, "image/jpeg"))
threads = together(4, client)
time.sleep(5)
before = len(answers)
subprocess.run(["podman", "kill", "--signal", "TERM", container], check=True, stdout=subprocess.DEVNULL)
while True:
    try:
        request.urlopen(url + "/readyz", timeout=10).close()
    except error.HTTPError:
        break
    time.sleep(0.05)
time.sleep(0.5)
end.set()
for thread in threads:
    thread.join()
bad = [answer for answer in answers if answer != 200]
print(f"{len(answers)} requests, {len(answers) - before} of them after SIGTERM, {len(bad)} failed {bad[:3]}")
assert not bad and len(answers) > before
PY
    echo "peak: $(grep VmHWM "/proc/$pid/status")"
    [ "$(podman wait "$project")" = 0 ] || fail "exit status $(podman inspect --format '{{.State.ExitCode}}' "$project")"
    [ "$(podman inspect --format '{{.State.OOMKilled}}' "$project")" = false ] || fail "out of memory"
    podman logs "$project" 2>&1 | tail -2
    echo "exit status 0"
}

compose_images() {
    local name
    for name in docker.io/prom/prometheus:v3.5.0 docker.io/prom/alertmanager:v0.28.1 docker.io/grafana/grafana:12.1.1 \
        ghcr.io/mlflow/mlflow:v3.17.2; do
        grep -q "image: $name\$" docker-compose.yml || fail "docker-compose.yml no longer names $name"
        ! real "$name" || continue
        debian
        case $name in
        */prometheus:*) stand_in "$name" <<'FILE'
RUN apt-get update && apt-get install -y --no-install-recommends prometheus && rm -rf /var/lib/apt/lists/* \
    && mkdir -p /prometheus && chown 65534:65534 /prometheus
USER 65534
ENTRYPOINT ["/bin/prometheus"]
FILE
            ;;
        */alertmanager:*) stand_in "$name" <<'FILE'
RUN apt-get update && apt-get install -y --no-install-recommends prometheus-alertmanager && rm -rf /var/lib/apt/lists/* \
    && ln -s prometheus-alertmanager /usr/bin/alertmanager && mkdir -p /alertmanager && chown 65534:65534 /alertmanager
USER 65534
ENTRYPOINT ["/bin/alertmanager"]
FILE
            ;;
        */grafana:*) say "Grafana is no Debian package: a stub that only says it is healthy" && stand_in "$name" <<'FILE'
RUN apt-get update && apt-get install -y --no-install-recommends busybox && rm -rf /var/lib/apt/lists/* \
    && ln -s busybox /bin/wget && mkdir -p /www/api && echo '{"stub":"this is not Grafana"}' >/www/api/health
ENTRYPOINT ["busybox", "httpd", "-f", "-p", "3000", "-h", "/www"]
FILE
            ;;
        */mlflow:*) stand_in "$name" <<'FILE'
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/* \
    && export PIP_CERT=/etc/ssl/certs/ca-certificates.crt SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
    && python3 -m venv /venv && /venv/bin/pip install -q --no-cache-dir uv \
    && export UV_NO_CACHE=1 VIRTUAL_ENV=/venv \
    && /venv/bin/uv pip install -q --compile-bytecode mlflow-skinny==3.17.2 'Flask<4' 'Flask-CORS<7' 'sqlalchemy<3' \
        alembic 'graphene<4' huey 'cryptography<51' aiohttp gunicorn 'numpy<3' pandas \
    && /venv/bin/uv pip install -q --compile-bytecode --no-deps mlflow==3.17.2 mlflow-tracing==3.17.2
ENV PATH=/venv/bin:/usr/local/bin:/usr/bin:/bin
FILE
            ;;
        esac
    done
}

# podman leaves health checks to systemd's timers; without systemd nothing runs them.
health_checks() {
    local name
    while sleep 2; do
        for name in $(podman ps -q --filter "label=com.docker.compose.project=$project"); do
            podman healthcheck run "$name" >/dev/null 2>&1 || true
        done
    done
}

all_healthy() {
    [ "$(podman ps -q --filter "label=com.docker.compose.project=$project" --filter health=healthy | wc -l)" = 5 ]
}

dc() { docker-compose -p "$project" -f docker-compose.yml "$@"; }

# The value that Prometheus has for a query, or nothing.
ask() {
    curl -sfG http://127.0.0.1:9090/api/v1/query --data-urlencode "query=$1" \
        | python3 -c 'import json,sys; print(*(r["value"][1] for r in json.load(sys.stdin)["data"]["result"]))'
}
is() { [ "$(ask "$1")" = "$2" ]; }

compose() {
    podman image exists "$image" || fail "no $image yet: scripts/container-test.sh image"
    compose_images
    say "docker-compose up"
    (cd "$work" && exec podman system service --time=0 "unix://$work/podman.sock" 2>"$work/podman.log") &
    started+=($!)
    export DOCKER_HOST=unix://$work/podman.sock COMPOSE_HTTP_TIMEOUT=180
    until_ok 10 test -S "$work/podman.sock"
    health_checks &
    started+=($!)
    dc down -v --remove-orphans >/dev/null 2>&1 || true
    dc config -q
    dc up -d --no-build || { dc ps && dc logs --no-color --tail 5 && fail "docker-compose up"; }
    local name
    for name in app mlflow prometheus alertmanager grafana; do
        until_ok 90 curl -sf "http://127.0.0.1:$(port_of "$name")"
        echo "$name answers"
    done
    until_ok 60 all_healthy
    dc ps

    say "Prometheus scrapes the service and hears the alerts' rules"
    for _ in 1 2 3; do
        curl -sf -F file=@examples/pictures/cat.jpg http://127.0.0.1:8000/predict >/dev/null
    done
    until_ok 60 is 'sum(up{job=~"petnet|petnet-api"})' 2
    until_ok 60 is 'sum(prediction_requests_total{job="petnet",class_predicted="cat"})' 3
    echo "up: $(ask 'up{job="petnet"}') and $(ask 'up{job="petnet-api"}'), predictions: $(ask 'sum(prediction_requests_total)')"
    echo "series of the service: $(ask 'count({job="petnet"})')"
    [ "$(curl -s http://127.0.0.1:9090/api/v1/rules | grep -o '"health":"ok"' | wc -l)" -gt 20 ] || fail "rules"
    until_ok 60 sh -c "curl -s http://127.0.0.1:9090/api/v1/alertmanagers | grep -q 'http://alertmanager:9093'"

    say "a deployer's look, and a training that reaches MLflow"
    local train=${CARGO_TARGET_DIR:-target}/release/petnet-train
    [ -x "$train" ] || cargo build --release --bin petnet-train
    "$train" smoke http://127.0.0.1:8000
    draw "$work/photos"
    MLFLOW_TRACKING_URI=http://127.0.0.1:5001 "$train" fit --data "$work/photos" --out "$work/models" --epochs 2 \
        --set image_size=16 --set mlflow.experiment_name=compose --quiet
    curl -sf "http://127.0.0.1:5001/api/2.0/mlflow/experiments/get-by-name?experiment_name=compose" >"$work/experiment.json"
    local experiment
    experiment=$(python3 -c 'import json,sys; print(json.load(sys.stdin)["experiment"]["experiment_id"])' <"$work/experiment.json")
    curl -sf --json "{\"experiment_ids\": [\"$experiment\"]}" http://127.0.0.1:5001/api/2.0/mlflow/runs/search >"$work/runs.json"
    python3 -c 'import json,sys
run = json.load(sys.stdin)["runs"][0]
figures = {m["key"]: m["value"] for m in run["data"]["metrics"]}
assert run["info"]["status"] == "FINISHED", run
print("at MLflow:", run["info"]["run_name"], "val_accuracy", figures["val_accuracy"], len(run["data"]["params"]), "settings")' \
        <"$work/runs.json" || fail "no finished run at MLflow"

    say "names, as the services see each other"
    dc exec -T app /petnet-serve healthcheck --url http://mlflow:5001/health || fail "app does not reach mlflow"
    dc exec -T mlflow python -c 'import urllib.request as r
print(r.urlopen("http://mlflow:5001/api/2.0/mlflow/experiments/search?max_results=1").read(60))' || fail "mlflow by name"
    [ "$(curl -s -o /dev/null -w '%{http_code}' -H 'Host: elsewhere:5001' \
        'http://127.0.0.1:5001/api/2.0/mlflow/experiments/search?max_results=1')" = 403 ] || fail "MLflow answers any host"
    echo "MLflow: 200 for mlflow:5001, 403 for another host"
    # shellcheck disable=SC2016 # variables of the template
    [ "$(podman ps -q --filter "label=com.docker.compose.project=$project" | xargs podman inspect \
        --format '{{range $p, $b := .NetworkSettings.Ports}}{{range $b}}{{.HostIP}}{{"\n"}}{{end}}{{end}}' \
        | grep -v '^$' | sort -u)" = 127.0.0.1 ] || fail "a port is open to others"
    echo "all ports on 127.0.0.1"
    dc down -v
}

# Stripes along and across: two classes of drawn images.
draw() {
    python3 - "$1" <<'PY'
import os, struct, sys, zlib

def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

for along, kind in enumerate(["cat", "dog"]):
    os.makedirs(f"{sys.argv[1]}/{kind}")
    for n in range(20):
        pixel = lambda x, y: bytes([((x if along else y) + n) // 4 % 2 * 150 + n * 5, n * 9, (x * y + n) % 256])
        rows = b"".join(b"\0" + b"".join(pixel(x, y) for x in range(32)) for y in range(32))
        head = struct.pack(">IIBBBBB", 32, 32, 8, 2, 0, 0, 0)
        png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
        open(f"{sys.argv[1]}/{kind}/{n}.png", "wb").write(png)
PY
}

port_of() {
    case $1 in
    app) echo 8000/readyz ;; mlflow) echo 5001/health ;; prometheus) echo 9090/-/ready ;;
    alertmanager) echo 9093/-/ready ;; grafana) echo 3000/api/health ;;
    esac
}

clean() {
    podman ps -aq --filter "label=com.docker.compose.project=$project" | xargs -r podman rm -f -t 0 >/dev/null
    { echo localhost/petnet-serve:local localhost/petnet-train:local && podman images -q --filter label=petnet.stand-in=1; } \
        | xargs podman rmi -f >/dev/null 2>&1 || true
    podman image prune -f >/dev/null
}

# No `&&` between them: bash would go on after a failed command inside.
case ${1:-all} in
image | run | compose | clean)
    tools
    "$1"
    ;;
train)
    tools
    build_stage train localhost/petnet-train:local
    podman run --rm --read-only --cap-drop=ALL localhost/petnet-train:local --version
    ;;
all)
    tools
    image
    run
    compose
    say "all passed"
    ;;
*)
    sed -n '2,18s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
