#!/usr/bin/env bash
# Multi-label data through prepare, fit, evaluate, predict, export and the service: collages of two by two images of the
# archive of cats and dogs ($PETNET_ARCHIVE) and of clothing ($PETNET_CLOTHING, a zip with folders dress and shoes), so that each
# collage has none to four of the labels, written to a labels.csv. ONNX Runtime must give the same probabilities as petnet.
# Usage: [IMAGES=2000] [PAGE=folder that keeps the report] scripts/multi-label-test.sh [PYTHON ENVIRONMENT, default $PETNET_PEERS]
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$(scripts/peers-venv.sh "${1:-}")
archive=$(scripts/archive.sh)
[ -f "${PETNET_CLOTHING:-}" ] || { echo "usage: set PETNET_CLOTHING=ARCHIVE.zip (folders dress and shoes)" >&2; exit 2; }
clothing=$(realpath "$PETNET_CLOTHING")
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
cargo build --release
petnet="$target/release/petnet-train"
work=$(mktemp -d)
server=
cleanup() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT
cd "$work"
export MLFLOW_TRACKING_URI=off

"$venv/bin/python" - "$archive" "$clothing" "${IMAGES:-2000}" <<'PYTHON'
import csv, io, random, sys, zipfile
from pathlib import Path
from PIL import Image

archive, clothing, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
drawn = random.Random(5)
photos = {}
with zipfile.ZipFile(archive) as pets, zipfile.ZipFile(clothing) as clothes:
    def gather(archive, label, folder):
        names = sorted(n for n in archive.namelist() if f"/{folder}/" in f"/{n}" and n.lower().endswith((".jpg", ".jpeg", ".png")))
        photos[label] = [(archive, name) for name in drawn.sample(names, min(len(names), count // 2))]
    gather(pets, "cat", "Cat")
    gather(pets, "dog", "Dog")
    gather(clothes, "dress", "dress")
    gather(clothes, "shoes", "shoes")
    def tile(label):
        while True:
            archive, name = drawn.choice(photos[label])
            try:
                return Image.open(io.BytesIO(archive.read(name))).convert("RGB").resize((160, 160))
            except OSError:
                pass
    Path("collages/images").mkdir(parents=True)
    with open("collages/labels.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "labels"])
        for number in range(count):
            labels = [label for label in photos if drawn.random() < 0.4]
            places = drawn.sample(range(4), len(labels))
            sheet = Image.new("RGB", (320, 320), tuple(drawn.randrange(256) for _ in range(3)))
            for label, place in zip(labels, places):
                sheet.paste(tile(label), (place % 2 * 160, place // 2 * 160))
            sheet.save(f"collages/images/{number}.jpg", quality=90)
            rows.writerow([f"images/{number}.jpg", "|".join(labels)])
PYTHON

if "$petnet" --quiet prepare --raw collages --out refused 2>refused.txt; then
    echo "labels like cat|dog were taken for classes" >&2
    exit 1
fi
grep -q "names several classes\|the label is empty" refused.txt
"$petnet" --quiet prepare --raw collages --out data --size 224 --multi-label
"$petnet" fit --data data --out models
"$petnet" evaluate --model models/best.safetensors --data data --out reports
[ -z "${PAGE:-}" ] || cp reports/report.html "$PAGE/"
"$petnet" calibrate --model models/best.safetensors --data data --out calibrated.safetensors >/dev/null
"$petnet" predict --model models/best.safetensors data/test | head -3
"$petnet" predict --model models/best.safetensors --format jsonl data/test >rows.jsonl
"$petnet" export --model models/best.safetensors --out model.onnx
"$target/release/petnet-serve" --model models/best.safetensors --host 127.0.0.1 --port 0 --feedback "$work/feedback" >serve.log 2>&1 &
server=$!
for _ in $(seq 100); do
    address=$(grep -o '127.0.0.1:[0-9]*' serve.log | head -1 || true)
    [ -n "$address" ] && curl --silent --fail "http://$address/health/ready" >/dev/null && break
    sleep 0.1
done
"$venv/bin/python" - "http://$address" <<'PYTHON'
import glob, io, json, sys, urllib.request
import numpy as np, onnxruntime
from PIL import Image

metrics = json.load(open("reports/metrics.json"))
assert metrics["mean_average_precision"] > 0.9, metrics["mean_average_precision"]
rows = [json.loads(line) for line in open("rows.jsonl")]
manifest = json.load(open("data/manifest.json"))
truth = {photo["path"]: set(photo["classes"]) for photo in manifest["photos"]}
right = sum(truth[row["path"].split("data/", 1)[1]] == set(row["labels"]) for row in rows)
assert abs(right / len(rows) - metrics["exact_match"]) < 1e-9, (right, len(rows), metrics["exact_match"])

# ONNX Runtime on images of the model's own size.
session = onnxruntime.InferenceSession("model.onnx")
properties = session.get_modelmeta().custom_metadata_map
thresholds, labels = json.loads(properties["thresholds"]), json.loads(properties["labels"])
size, furthest = int(properties["size"]), 0.0
for path in sorted(glob.glob("data/test/*.jpg"))[:50]:
    image = Image.open(path).convert("RGB").resize((size, size), Image.LANCZOS)
    file = io.BytesIO()
    image.save(file, "PNG")
    pixels = np.asarray(image, dtype=np.float32).transpose(2, 0, 1)[None]
    theirs = session.run(["probabilities"], {"images": pixels})[0][0]
    request = urllib.request.Request(sys.argv[1] + "/predict", file.getvalue(), {"Content-Type": "image/png"})
    answer = json.load(urllib.request.urlopen(request))
    ours = np.array([answer["probabilities"][label] for label in labels])
    furthest = max(furthest, float(abs(ours - theirs).max()))
    said = {one["label"] for one in answer["labels"]}
    assert said == {label for label, p, t in zip(labels, ours, thresholds) if p >= t}, answer
print(f"service and ONNX Runtime: probabilities at most {furthest:.4f} apart on 50 images")
# The model runs in bytes where the processor can; ONNX Runtime in 32-bit floats.
assert furthest < 0.15, furthest
feedback = json.dumps({"prediction_id": answer["prediction_id"], "label": "|".join(reversed(sorted(said)))}).encode()
request = urllib.request.Request(sys.argv[1] + "/feedback", feedback, {"Content-Type": "application/json"})
assert json.load(urllib.request.urlopen(request))["correct"] is True
print("exact match of predict and evaluate:", right, "of", len(rows))
PYTHON
echo "multi-label: passed"
