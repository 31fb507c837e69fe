#!/usr/bin/env bash
# Batch scoring of a bucket of 20,000 images: four shards into Parquet, one of them killed half-way; memory; archives in the bucket.
#
#   scripts/batch-test.sh [ARCHIVE.zip] [WORK FOLDER]      ARCHIVE.zip is $PETNET_ARCHIVE by default
#
# Installs pinned tools into WORK FOLDER/venv and uses port 5556 of the loopback (moto, a local S3). The trainer is taken
# from CARGO_TARGET_DIR, where it is built with `--features cloud`, by default WORK FOLDER/target.
set -euo pipefail
cd "$(dirname "$0")/.."
here=$PWD
archive=$(scripts/archive.sh "${1:-}")
work=$(realpath -m "${2:-/tmp/petnet-batch}")
photos=20000
small=2000
mkdir -p "$work"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$work/target}
export AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test AWS_REGION=us-east-1
export AWS_ENDPOINT_URL=http://127.0.0.1:5556 AWS_ALLOW_HTTP=true

say() { echo "== $*"; }
started=()
trap 'for process in "${started[@]}"; do kill "$process" 2>/dev/null || true; done' EXIT

say "tools"
python=$work/venv/bin/python
if [ ! -x "$work/venv/bin/moto_server" ]; then
    python3 -m venv "$work/venv" && "$work/venv/bin/pip" -q install uv
    "$work/venv/bin/uv" pip install -q --compile-bytecode --python "$python" 'moto[server]==5.2.5' boto3==1.44.8 \
        pyarrow==26.0.1
fi
cargo build --release -p petnet-train --features cloud
# An array, not a function: in the background, $! must be the program's own.
predict=("$CARGO_TARGET_DIR/release/petnet-train" predict --quiet --format parquet --part-size 1000)
check() { "$python" "$here/scripts/batch_check.py" "$@"; }
# Prints the cost of a run: images/s, images per second of CPU time, peak memory.
measure() { check measure "${predict[@]}" --json "$@"; }

say "a bucket of $photos images and some broken ones"
"$work/venv/bin/moto_server" -H 127.0.0.1 -p 5556 >"$work/moto.log" 2>&1 &
started+=("$!")
for _ in $(seq 60); do curl -sf 127.0.0.1:5556/moto-api/ >/dev/null && break; sleep 1; done
check upload "$archive" "$photos" "$small"

say "four shards, two at a time; the second is killed with -9 half-way"
out=$work/answers && rm -rf "$out" "$work"/memory-*
export RAYON_NUM_THREADS=1
began=$SECONDS
"${predict[@]}" --out "$out" --shard 0/4 s3://photos/inbox/ &
first=$!
started+=("$first")
"${predict[@]}" --out "$out" --shard 1/4 s3://photos/inbox/ &
second=$!
started+=("$second")
until [ -f "$out/part-00001-00001.parquet" ]; do kill -0 "$second" && sleep 0.1; done
kill -9 "$second"
wait "$second" || echo "killed: $(find "$out" -name 'part-00001-*' | wc -l) parts are there, $(find "$out" -name '.part-00001-*' | wc -l) was begun"
[ ! -e "$out/_SUCCESS-00001" ]
"${predict[@]}" --out "$out" --shard 1/4 s3://photos/inbox/
wait "$first"
"${predict[@]}" --out "$out" --shard 2/4 s3://photos/inbox/ &
third=$!
started+=("$third")
"${predict[@]}" --out "$out" --shard 3/4 s3://photos/inbox/
wait "$third"
echo "$((SECONDS - began)) s in all"
check answers "$out"
unset RAYON_NUM_THREADS

say "five shards do not fit into a folder of four"
if "${predict[@]}" --out "$out" --shard 0/5 s3://photos/inbox/; then exit 1; fi

say "memory: $small images, then all"
measure --out "$work/memory-small" s3://photos/small/ | tee "$work/small.txt"
measure --out "$work/memory-all" s3://photos/inbox/ | tee "$work/all.txt"
check flat "$work/small.txt" "$work/all.txt"

say "the same from the archive on the disk"
measure --out "$work/memory-zip" "$archive"

say "a tar and a zip in the bucket give the same answers as the images themselves"
measure --out "$work/memory-tar" 's3://photos/shards/*.tar'
measure --out "$work/memory-objects" s3://photos/shards/part-0.zip
check same "$work/memory-small" "$work/memory-tar" "$work/memory-objects"
say "prepare from the bucket's images and from an archive in it; no download is left"
prepare=("$CARGO_TARGET_DIR/release/petnet-train" --quiet --json prepare --size 64)
for raw in small/ shards/part-0.zip; do
    "${prepare[@]}" --raw "s3://photos/$raw" --out "$work/prepared" | tee "$work/prepared.json" | head -c 200 && echo
    "$python" -c 'import json, sys; answer = json.load(open(sys.argv[1])); assert answer["classes"] == ["cat", "dog"] and answer["readable"] > 900, answer' "$work/prepared.json"
done
if "${prepare[@]}" --raw s3://photos/nothing-here/ --out "$work/prepared"; then exit 1; fi
[ -z "$(find "$work" -maxdepth 1 -name '*.download' -o -maxdepth 1 -name '*.partial')" ]
say "all passed"
