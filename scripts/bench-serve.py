#!/usr/bin/env python3
"""petnet-serve beside its Python twin (FastAPI + PyTorch SimpleCNN 224), in one run.

Run: ../shared/tools/peers-venv.sh /tmp/peers
     /tmp/peers/bin/python -m pip install pillow
     /tmp/peers/bin/python scripts/bench-serve.py [SECONDS a cell, default 8]

Loads both with the same 500 x 375 JPEG over loopback at concurrency 1, 8 and 32, then petnet at
twice the rate that it can serve. Prints a table; writes nothing.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
# petnet-serve's default --max-batch.
BATCH = 16
SECONDS = sys.argv[1] if len(sys.argv) > 1 else "8"


def draw_photo(path):
    """Smooth shapes with some grain: about the bytes of a real photo of this size."""
    y, x = np.mgrid[0:375, 0:500].astype(np.float32)
    grain = np.random.default_rng(1).normal(0, 9, (375, 500, 3))
    waves = [np.sin(x / 31 + c) * 60 + np.cos(y / 23 - c) * 50 + 128 for c in range(3)]
    Image.fromarray(np.clip(np.stack(waves, 2) + grain, 0, 255).astype(np.uint8)).save(path, quality=85)
    return path


def load(port, photo, connections, rate=None):
    command = [TARGET / "examples/load", f"127.0.0.1:{port}", photo, str(connections), SECONDS]
    command += [str(rate)] if rate else []
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


class Service:
    def __init__(self, port, command, **kwargs):
        self.port = port
        began = time.perf_counter()
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, **kwargs)
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).read()
                break
            except OSError:
                time.sleep(0.002)
        self.start_ms = (time.perf_counter() - began) * 1e3

    def memory(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))

    def stop(self):
        self.process.kill()
        self.process.wait()


def petnet(port, model):
    command = [TARGET / "petnet-serve", "--host", "127.0.0.1", "--port", str(port), "--metrics-addr", "off"]
    command += ["--feedback", tempfile.mkdtemp()]
    return Service(port, command + ["--model", model, "--log", "warn"])


def overhead(service, photo):
    """What a lone client waits for beyond decoding and the network, by the server's own clocks."""
    alone = load(service.port, photo, 1)
    text = urllib.request.urlopen(f"http://127.0.0.1:{service.port}/metrics").read().decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line and line[0] != "#")
    stages = ("preprocessing_duration_seconds", "inference_duration_seconds")
    work = [float(values[f"{s}_sum"]) / float(values[f"{s}_count"]) * 1e3 for s in stages]
    return (
        f"alone, decoding {work[0]:.2f} ms + network {work[1]:.2f} ms (means), answered in "
        f"{alone['p50_ms']} ms (median): {alone['p50_ms'] - sum(work):+.2f} ms"
    )


def measure(name, service, photo):
    rows = []
    for connections in (1, 8, 32):
        load(service.port, photo, connections) if connections == 1 else None  # warm
        rows.append((connections, load(service.port, photo, connections)))
    for connections, row in rows:
        print(f"{name:24}{connections:>6}{row['per_second']:>10.1f}{row['p50_ms']:>10.2f}{row['p99_ms']:>10.2f}{row['failed']:>8}")
    return {connections: row for connections, row in rows}


def main():
    subprocess.run(["cargo", "build", "--release", "--bin", "petnet-serve", "--bin", "petnet-train", "--example", "load"], cwd=ROOT, check=True)
    work = Path(tempfile.mkdtemp())
    photo = draw_photo(work / "photo.jpg")
    print(f"photo of {photo.stat().st_size} bytes, {SECONDS} s a cell")
    simple = simple_cnn_224(work)
    print(f"{'':24}{'conns':>6}{'req/s':>10}{'p50 ms':>10}{'p99 ms':>10}{'failed':>8}")
    here = ROOT / "benches/peers"
    uvicorn = [sys.executable, "-m", "uvicorn", "fastapi_twin:app", "--port", "18700", "--log-level", "warning"]
    services = {
        "FastAPI, SimpleCNN 224": lambda: Service(18700, uvicorn, cwd=here),
        "petnet, bundled": lambda: petnet(18701, "pretrained"),
        "petnet, SimpleCNN 224": lambda: petnet(18702, str(simple)),
    }
    results, facts = {}, []
    for name, start in services.items():
        service = start()
        if name.startswith("petnet"):
            facts.append(f"{name}: {overhead(service, photo)}")
        results[name] = measure(name, service, photo)
        if name.startswith("petnet"):
            top = max(row["per_second"] for row in results[name].values())
            # Clients that ask again at once, at 2, 4 and 16 times those that keep it busy.
            crowd = {count: load(service.port, photo, count) for count in (60, 120, 480)}
            served = ", ".join(f"{row['per_second'] / top:.2f} at {count}" for count, row in crowd.items())
            facts.append(f"{name}: goodput of clients that never wait, over the best: {served}")
            row = load(service.port, photo, 256, 2 * top)
            batch_ms = BATCH / top * 1e3
            facts.append(
                f"{name}: at {2 * top:.0f} req/s (twice what it serves) {row['per_second']:.0f} served a second, "
                f"p99 {row['p99_ms']} ms = {row['p99_ms'] / batch_ms:.2f} batches of {BATCH}; {row['refused']} refused, "
                f"p50 {row['refused_p50_ms']} ms, p99 {row['refused_p99_ms']} ms; {row['failed']} failed"
            )
        facts.append(f"{name}: start to first answer {service.start_ms:.0f} ms, peak memory {service.memory():.0f} MB")
        service.stop()
    print("\n".join(facts))
    twin = results["FastAPI, SimpleCNN 224"]
    for name in list(services)[1:]:
        ratios = ", ".join(f"{results[name][c]['per_second'] / twin[c]['per_second']:.1f} at {c}" for c in twin)
        print(f"{name} over FastAPI, requests per second: {ratios}")


def simple_cnn_224(work):
    """One step of training on two drawn pictures: the weights do not matter, their number does."""
    rng = np.random.default_rng(2)
    for name in ("cat", "dog"):
        (work / "data" / name).mkdir(parents=True)
        for number in range(20):
            pixels = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(work / "data" / name / f"{number}.png")
    (work / "tiny.yaml").write_text("image_size: 224\nnum_epochs: 1\nbatch_size: 4\n")
    command = [TARGET / "petnet-train", "fit", "--quiet", "--config", work / "tiny.yaml"]
    subprocess.run(command + ["--data", work / "data", "--out", work / "model"], check=True, stdout=subprocess.DEVNULL)
    return work / "model" / "best.safetensors"


if __name__ == "__main__":
    main()
