#!/usr/bin/env bash
# Every layout of image folders and label tables, made from images of an archive, through prepare, fit, evaluate and predict. Some
# minutes. Needs Python.
# Usage: scripts/layouts-test.sh [ARCHIVE.zip], by default $PETNET_ARCHIVE
set -euo pipefail
cd "$(dirname "$0")/.."
archive=$(scripts/archive.sh "${1:-}")
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
cargo build --release --bin petnet-train
petnet="$target/release/petnet-train"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export MLFLOW_TRACKING_URI=off

python3 - "$archive" <<'PYTHON'
import json, os, sys, tarfile, zipfile
from pathlib import Path

def write(path, data):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)

photos = []
with zipfile.ZipFile(sys.argv[1]) as archive:
    for kind in ("Cat", "Dog"):
        names = [name for name in archive.namelist() if f"/{kind}/" in f"/{name}" and name.endswith(".jpg")][:40]
        photos += [(kind.lower(), number, archive.read(name)) for number, name in enumerate(names)]
split = lambda number: ("train", "valid", "test")[0 if number < 28 else 1 if number < 34 else 2]
rows = []
for kind, number, data in photos:
    write(f"folders/{kind}/{number}.jpg", data)
    write(f"above/{split(number)}/{kind}/{number}.jpg", data)
    write(f"below/{kind}/{split(number)}/{number}.jpg", data)
    write(f"names/train/{kind}.{number}.jpg", data)
    for flat in ("table", "hugging", "elsewhere"):
        write(f"{flat}/images/{kind}{number}.jpg", data)
    rows.append((f"images/{kind}{number}.jpg", kind, split(number)))
lines = ["path,label,split", *(",".join(row) for row in rows)]
write("table/labels.csv", ("\ufeff" + "\n".join(lines)).encode())
write("hugging/metadata.jsonl", "\n".join(json.dumps({"file_name": path, "label": label}) for path, label, _ in rows).encode())
write("labels.csv", "\n".join(["image,class", *(f"{Path(path).name},{label}" for path, label, _ in rows)]).encode())
write("folders/@eaDir/x/1.jpg", photos[0][2])
write("folders/cat/phone.HEIC", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
write("folders/cat/notes.txt", b"no image")
os.rename("folders/dog", "dogs-elsewhere")
os.symlink(os.path.abspath("dogs-elsewhere"), "folders/dog")
with zipfile.ZipFile("above.zip", "w") as packed, tarfile.open("above.tar", "w") as tar:
    for path in sorted(Path("above").rglob("*.jpg")):
        packed.write(path, "./" + str(path).replace("/", "\\"))
        tar.add(path)
PYTHON

check() { # NAME, then arguments of prepare
    local name=$1
    shift
    "$petnet" --quiet --json prepare --out "out/$name" --size 96 "$@" >"$name.json"
    "$petnet" --quiet fit --data "out/$name" --out "models/$name" >/dev/null
    "$petnet" --quiet --json evaluate --model "models/$name/best.safetensors" --data "out/$name" --split val \
        --out "reports/$name" >"$name-val.json"
    "$petnet" --quiet predict --model "models/$name/best.safetensors" --format csv "out/$name" | wc -l >"$name.rows"
    python3 - "$name" <<'PYTHON'
import json, sys
name = sys.argv[1]
said, judged = json.load(open(f"{name}.json")), json.load(open(f"{name}-val.json"))
rows = int(open(f"{name}.rows").read()) - 1
figures = judged.get("metrics", judged)
assert said["classes"] == ["cat", "dog"] and said["readable"] == 80 == rows, (said["readable"], rows)
parts = " / ".join(str(sum(said["counts"][part].values())) for part in ("train", "val", "test"))
print(f"{name:12} {said['notes'][0]:58} {parts:14} accuracy {figures['accuracy']:.3f}  left out {said['left_out']}")
PYTHON
}

check folders --raw folders
check above --raw above
check above-zip --raw above.zip
check above-tar --raw above.tar
check below --raw below
check names --raw names --label-pattern '(cat|dog)\.\d+'
check table --raw table
check hugging --raw hugging
check elsewhere --raw elsewhere --labels labels.csv
check prepared --raw out/above
