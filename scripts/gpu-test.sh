#!/usr/bin/env bash
# Training on a GPU, compared in the same run with PyTorch where Python has it: images/s, the time until kernels are compiled in a
# first and in a second run, and memory. On drawn images, so that only the binary is needed.
#
#   scripts/gpu-test.sh [BINARY] [DEVICE]
#
# Without BINARY, petnet-train is built with the feature `vulkan` (an hour on two cores). DEVICE is `wgpu` by default; `cpu`
# tests the script itself. STEPS=200 is the number of measured steps; MODELS="simple_cnn:128:32 .." lists NAME:SIZE:BATCH; PRECISION=f16 has
# convolutions compute in 16 bits, PyTorch's by autocast. COUNT=1 only counts the kernels of a step, which are the same on software
# Vulkan; TIME=1 only adds up the time of each kernel, which makes a step slower.
set -euo pipefail
cd "$(dirname "$0")/.."
here=$PWD
binary=${1:-}
device=${2:-wgpu}
models=${MODELS:-simple_cnn:128:32 petnet:128:256 efficientnet_lite0:160:64}
steps=${STEPS:-200}
precision=${PRECISION:-f32}
if [ -z "$binary" ]; then
    export CARGO_TARGET_DIR=${PETNET_WGPU_TARGET:-$here/target/wgpu}
    cargo build --release -p petnet-train --features vulkan
    binary=$CARGO_TARGET_DIR/release/petnet-train
fi
binary=$(realpath "$binary")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export MLFLOW_TRACKING_URI=off XDG_CACHE_HOME=$work/cache XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-/tmp}

python3 - 512 <<'PYTHON'
# BMP images of stripes, a folder a class.
import pathlib, struct, sys
count, side = int(sys.argv[1]), 64
for name, along in (("across", 0), ("along", 1)):
    folder = pathlib.Path("shapes", name)
    folder.mkdir(parents=True)
    for number in range(count // 2):
        pixels = bytes(
            value
            for y in range(side)
            for x in range(side)
            for value in [(x if along else y) * (3 + number % 7) % 256, number % 256, (x * y + number) % 256]
        )
        head = struct.pack("<2sIHHI", b"BM", 54 + len(pixels), 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, len(pixels), 0, 0, 0, 0)
        (folder / f"{number}.bmp").write_bytes(head + pixels)
PYTHON

# NAME SIZE BATCH EPOCHS LOG: one training.
train() {
    "$binary" fit --data shapes --out "models/$1" --device "$device" --set "model={name: $1}" --set init=none --set freeze=0 \
        --set image_size="$2" --set batch_size="$3" --set num_epochs="$4" --set quantize=false --set num_workers="$(nproc)" \
        --set precision="$precision" --set warmup_epochs=0 --set checkpoint.every_n_steps=0 --set logging.log_every_n_steps=1 >"$5" 2>&1
}

if [ -n "${COUNT:-}${TIME:-}" ]; then
    # cubecl writes a line for each kernel that is launched, or a table of their times.
    level=$([ -n "${COUNT:-}" ] && echo minimal || echo basic)
    for model in $models; do
        IFS=: read -r name size batch <<<"$model"
        # Once without counting: kernels that are tried are launched as well.
        rm -f cubecl.toml launches.txt
        train "$name" "$size" "$batch" 1 "$name.log" || { tail -3 "$name.log" >&2; exit 1; }
        printf '[profiling]\nlogger = { level = "%s", file = "launches.txt" }\n' "$level" >cubecl.toml
        train "$name" "$size" "$batch" 1 "$name.log" || { tail -3 "$name.log" >&2; exit 1; }
        python3 "$here/scripts/gpu_check.py" "$([ -n "${COUNT:-}" ] && echo launches || echo times)" "$name" "$name.log" launches.txt
    done
    exit
fi

for model in $models; do
    IFS=: read -r name size batch <<<"$model"
    epochs=$((steps * batch / 460 + 1))
    for run in first second; do
        train "$name" "$size" "$batch" "$epochs" "$name-$run.log" || { tail -3 "$name-$run.log" >&2; exit 1; }
        python3 "$here/scripts/gpu_check.py" speed "$name $size px, batch $batch, $run run" "$name-$run.log"
    done
    python3 "$here/scripts/gpu_check.py" pytorch "$name" "$size" "$batch" "$steps" "$precision"
done
du -sh "$work/cache" 2>/dev/null | sed 's/^/kernels on disk: /' || true
command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,memory.used,driver_version --format=csv,noheader || true
