#!/usr/bin/env bash
# The backends that the default build leaves out: ndarray must agree with cpu, and wgpu must train and predict on software
# Vulkan. A cold build takes half an hour on two cores.
# Usage: scripts/backends.sh
set -euo pipefail
cd "$(dirname "$0")/.."
export CARGO_TARGET_DIR="${PETNET_WGPU_TARGET:-$PWD/target/wgpu}"
export MLFLOW_TRACKING_URI=off
# The full search for the best kernels takes longer on software Vulkan than the training itself.
export CUBECL_AUTOTUNE_LEVEL=minimal XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-/tmp}

if ! ls /usr/share/vulkan/icd.d/*.json >/dev/null 2>&1; then
    apt-get update -qq && apt-get install -y -qq --no-install-recommends mesa-vulkan-drivers
fi
cargo build --release -p petnet-train --features wgpu,ndarray
# Outputs and gradients of every architecture beside the CPU's, whole and with a block frozen.
cargo test --release -p petnet --features train,wgpu,ndarray --test backends -- --nocapture
petnet="$CARGO_TARGET_DIR/release/petnet-train"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 - "$work/shapes" <<'PY'
# Eight BMP images a class, 24 x 24: stripes along or across.
import pathlib, struct, sys
for name, along in (("across", 0), ("along", 1)):
    folder = pathlib.Path(sys.argv[1], name)
    folder.mkdir(parents=True)
    for number in range(8):
        pixels = bytes(
            value
            for y in range(24)
            for x in range(24)
            for value in ((((x, y)[along] + number) // 4 % 2) * 120 + number * 9, number * 20, 90)
        )
        head = struct.pack("<IHHI", 54 + len(pixels), 0, 0, 54)
        info = struct.pack("<IiiHHIIiiII", 40, 24, 24, 1, 24, 0, len(pixels), 2835, 2835, 0, 0)
        (folder / f"{number}.bmp").write_bytes(b"BM" + head + info + pixels)
PY

# Without an adapter of Vulkan or OpenGL the error must name the remedy, and `auto` must use the CPU.
without() {
    env VK_ICD_FILENAMES=/nonexistent VK_DRIVER_FILES=/nonexistent __EGL_VENDOR_LIBRARY_FILENAMES=/nonexistent "$@"
}
if without "$petnet" predict --device wgpu "$work/shapes" >"$work/none.txt" 2>&1; then
    echo "predicted on a GPU that is not there" && exit 1
fi
grep -- '--device cpu' "$work/none.txt"
without "$petnet" predict --device auto --quiet examples/pictures/cat.jpg | grep cat

while read -r size network model <&3; do
    cat >"$work/tiny.yaml" <<YAML
model: $model
image_size: $size
num_epochs: 2
batch_size: 4
ema_decay: 0
YAML
    "$petnet" fit --config "$work/tiny.yaml" --data "$work/shapes" --out "$work/cpu" --quiet
    answers() { "$petnet" predict --model "$work/cpu/best.safetensors" --format csv --quiet --device "$1" "$work/shapes"; }
    answers cpu >"$work/cpu.csv"
    for device in flex ndarray wgpu; do
        began=$SECONDS
        answers "$device" >"$work/$device.csv"
        python3 - "$work/cpu.csv" "$work/$device.csv" "$network on $device" $((SECONDS - began)) <<'PY'
import csv, sys
rows = [list(csv.DictReader(open(path))) for path in sys.argv[1:3]]
worst = max(abs(float(a["confidence"]) - float(b["confidence"])) for a, b in zip(*rows))
assert len(rows[0]) == len(rows[1]) > 0 and worst < 1e-3, worst
print(f"{sys.argv[3]}: {len(rows[0])} images, largest difference of confidence to cpu {worst:.1e}, {sys.argv[4]} s")
PY
    done
    began=$SECONDS
    "$petnet" fit --config "$work/tiny.yaml" --data "$work/shapes" --out "$work/wgpu" --device wgpu
    echo "$network trained and predicted on wgpu, $((SECONDS - began)) s with all kernels compiled and tuned"
done 3<<'CASES'
16 simple_cnn {name: simple_cnn, channels: [8, 16], hidden: 8}
16 petnet {name: petnet, stem: 8, widths: [8, 16], depths: [1, 1]}
16 improved_cnn {name: improved_cnn}
32 efficientnet_lite0 {name: efficientnet_lite0}
CASES

# A training on the GPU: its losses beside the CPU's from the same weights, kernels kept for the next run, a training that is
# interrupted and resumed, and convolutions in 16 bits.
cat >"$work/steps.yaml" <<YAML
model: {name: petnet, stem: 8, widths: [8, 16], depths: [1, 1]}
init: $work/start.safetensors
freeze: 0
image_size: 16
batch_size: 5
num_epochs: 6
learning_rate: 0.005
grad_clip: 1.0
label_smoothing: 0.0
quantize: false
YAML
sed 's/^init:.*/init: none/; s/^num_epochs:.*/num_epochs: 1/' "$work/steps.yaml" >"$work/start.yaml"
"$petnet" fit --config "$work/start.yaml" --data "$work/shapes" --out "$work/start" --quiet
cp "$work/start/last.safetensors" "$work/start.safetensors"
export XDG_CACHE_HOME=$work/kernels
# NAME DEVICE [ARGUMENTS..]: one training, with its log.
train() {
    local name=$1 device=$2
    shift 2
    "$petnet" fit --config "$work/steps.yaml" --data "$work/shapes" --out "$work/$name" --device "$device" "$@" >"$work/$name.log" 2>&1 ||
        { tail -3 "$work/$name.log" && exit 1; }
}
train host cpu
train first wgpu
train second wgpu
train half wgpu --set precision=f16
# Interrupted after its first epoch, and resumed.
"$petnet" fit --config "$work/steps.yaml" --data "$work/shapes" --out "$work/resumed" --device wgpu >"$work/cut.log" 2>&1 &
cut=$!
until grep -aq "^epoch   1" "$work/cut.log"; do
    kill -0 $cut || { tail -3 "$work/cut.log" && exit 1; }
    sleep 0.1
done
kill -INT $cut
status=0
wait $cut || status=$?
[ "$status" = 130 ] || { echo "was not interrupted: status $status" && exit 1; }
train resumed wgpu --resume
grep -aE "fit: .*resumed.* epoch" "$work/resumed.log"
if "$petnet" fit --config "$work/steps.yaml" --data "$work/shapes" --out "$work/refused" --set precision=f16 --quiet >"$work/refused.log" 2>&1; then
    echo "trained in 16 bits on a CPU" && exit 1
fi
grep -a "use f32 on a CPU" "$work/refused.log"
python3 - "$work" <<'PY'
import json, pathlib, re, sys
work = pathlib.Path(sys.argv[1])
losses = {
    name: [(epoch["train_loss"], epoch["val_loss"]) for epoch in json.loads((work / name / "history.json").read_text())]
    for name in ("host", "first", "second", "half", "resumed")
}
# In 16 bits, the first epoch alone can be compared closely: what rounding changes grows with every step.
for name, epochs, limit in (("first", 6, 1e-4), ("second", 6, 1e-4), ("resumed", 6, 1e-4), ("half", 1, 2e-3), ("half", 6, 0.1)):
    assert len(losses[name]) == len(losses["host"]) == 6, losses
    pairs = list(zip(losses[name], losses["host"]))[:epochs]
    far = max(abs(a - b) for ours, theirs in pairs for a, b in zip(ours, theirs))
    print(f"{name}: losses of training and validation in {epochs} epochs at most {far:.1e} from the CPU's; {losses[name][-1]}")
    assert far < limit, losses
assert losses["host"][-1][0] < losses["host"][0][0], losses
ready = [
    float(re.search(r"GPU kernels are ready.*?seconds.*?=\D*([\d.]+)", (work / f"{name}.log").read_text(errors="replace"))[1])
    for name in ("first", "second")
]
print(f"kernels ready after {ready[0]:.1f} s, in the second run {ready[1]:.1f} s")
assert ready[1] < ready[0] / 2
assert losses["half"] != losses["first"], "16 bits make no difference"
PY
