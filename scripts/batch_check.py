"""Steps of scripts/batch-test.sh: uploads images to a bucket, measures, and checks the answers.

batch_check.py upload ARCHIVE.zip PHOTOS SMALL
batch_check.py measure COMMAND...
batch_check.py answers FOLDER
batch_check.py flat SMALL.txt ALL.txt
batch_check.py same FOLDER...
"""

import io
import json
import os
import subprocess
import sys
import tarfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BUCKET = "photos"
BROKEN = {
    "inbox/broken/empty.jpg": b"",
    "inbox/broken/page.jpg": b"<html>not found</html>",
    "inbox/broken/zeros.png": bytes(1000),
    "inbox/broken/odd name + 100% [1].jpg": b"\xff\xd8\xff\xe0 and nothing more",
}


def client():
    import boto3
    from botocore.config import Config

    return boto3.client("s3", config=Config(max_pool_connections=16))


def sizes():
    pages = client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="inbox/")
    return {item["Key"]: item["Size"] for page in pages for item in page.get("Contents", [])}


def upload(archive, photos, small):
    s3 = client()
    s3.create_bucket(Bucket=BUCKET)
    source = zipfile.ZipFile(archive)
    names = [name for name in source.namelist() if name.lower().endswith(".jpg")]
    # Every class alike, as far as it goes.
    names.sort(key=lambda name: (Path(name).stem.zfill(9), name))
    names = names[: int(photos)]
    began = time.monotonic()

    def inbox(name):
        return "/".join(Path(name).parts[-2:])

    objects = [(f"inbox/{inbox(name)}", name) for name in names]
    objects += [(f"small/{inbox(name)}", name) for name in names[: int(small)]]
    photo = {name: source.read(name) for name in names}
    with ThreadPoolExecutor(8) as pool:
        put = lambda key, body: s3.put_object(Bucket=BUCKET, Key=key, Body=body)
        done = [pool.submit(put, key, photo[name]) for key, name in objects]
        done += [pool.submit(put, key, body) for key, body in BROKEN.items()]
        # Not an image by its name: it is skipped.
        done.append(pool.submit(put, "inbox/readme.txt", b"hello"))
        for future in done:
            future.result()
    for key, body in shards(names[: int(small)], photo, inbox):
        s3.put_object(Bucket=BUCKET, Key=key, Body=body)
    print(f"{len(done)} objects in {time.monotonic() - began:.0f} s")


def shards(names, photo, inbox):
    half = len(names) // 2
    for number, part in enumerate([names[:half], names[half:]]):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as tar:
            for name in part:
                entry = tarfile.TarInfo(inbox(name))
                entry.size = len(photo[name])
                tar.addfile(entry, io.BytesIO(photo[name]))
        yield f"shards/part-{number}.tar", file.getvalue()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in names:
            packed.writestr(inbox(name), photo[name])
    yield "shards/part-0.zip", file.getvalue()


def measure(*command):
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = 0
    while process.poll() is None:
        try:
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM"):
                    peak = max(peak, int(line.split()[1]))
        except OSError:
            pass
        time.sleep(0.02)
    wall = time.monotonic() - began
    if process.returncode:
        sys.exit(f"{command}: exit status {process.returncode}")
    done = json.loads(process.stdout.read())
    used = os.times()
    cpu = used.children_user + used.children_system
    photos = done["photos"]
    print(
        f"{photos} photos, {done['failed']} failed: {photos / wall:.0f} photos/s, "
        f"{photos / cpu:.0f} per second of one core, VmHWM {peak / 1024:.1f} MiB"
    )


def table(folder):
    from pyarrow import dataset

    return dataset.dataset(folder, format="parquet").to_table()


def answers(folder):
    import pyarrow

    rows = table(folder)
    types = {field.name: field.type for field in rows.schema}
    text, number = pyarrow.string(), pyarrow.float32()
    assert types == {
        "path": text, "label": text, "confidence": number, "decision": text, "ood_score": number,
        "p_cat": number, "p_dog": number, "model": text, "error": text
    }, types  # fmt: skip
    rows = rows.to_pylist()
    keys = {f"s3://{BUCKET}/{key}": size for key, size in sizes().items() if not key.endswith(".txt")}
    assert sorted(row["path"] for row in rows) == sorted(keys), "not every key exactly once"
    bad = {row["path"] for row in rows if row["error"]}
    # The data set has empty files of its own.
    empty = {key for key, size in keys.items() if size == 0}
    assert bad == empty | {f"s3://{BUCKET}/{key}" for key in BROKEN}, bad
    assert len({row["model"] for row in rows}) == 1 and len(rows[0]["model"]) == 12, rows[0]
    right = judged = 0
    for row in rows:
        values = [row[name] for name in ("label", "confidence", "decision", "ood_score", "p_cat", "p_dog")]
        if row["error"]:
            assert values == [None] * 6, row
            continue
        assert row["decision"] in ("answered", "low_confidence", "out_of_distribution"), row
        assert abs(row["p_cat"] + row["p_dog"] - 1) < 1e-4, row
        judged += 1
        right += row["label"] == row["path"].split("/")[-2].lower()
    accuracy = right / judged
    print(f"{len(rows)} keys, each exactly once; {len(bad)} bad ones with an error; accuracy {accuracy:.4f}")
    assert accuracy > 0.93


def flat(small, everything):
    peaks = [float(Path(name).read_text().split("VmHWM ")[1].split()[0]) for name in (small, everything)]
    print(f"{peaks[0]} MiB, then {peaks[1]} MiB")
    # Ten times the images; some tolerance for the allocator.
    assert peaks[1] < peaks[0] * 1.25 + 8, "memory grows with the number of images"


def same(*folders):
    def of(folder):
        rows = table(folder).to_pylist()
        return {"/".join(row.pop("path").split("/")[-2:]): row for row in rows}

    first, *others = map(of, folders)
    assert first and all(other == first for other in others), "answers differ"
    print(f"{len(first)} answers are the same {len(folders)} times")


if __name__ == "__main__":
    {f.__name__: f for f in (upload, measure, answers, flat, same)}[sys.argv[1]](*sys.argv[2:])
