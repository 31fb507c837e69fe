#!/usr/bin/env python3
"""Attacks on petnet-serve within a control group of a given memory limit; prints observed against limit.

Run by scripts/attack.sh. Needs root for the control group; without one, the limit is --memory alone.
"""

import gzip
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zlib
from pathlib import Path

SERVER, PORT = sys.argv[1], 18990
URL = f"http://127.0.0.1:{PORT}"
failures = []


class Group:
    """A memory control group (version 2 or 1), or none without the permission to create one."""

    def __init__(self, megabytes):
        self.folder = self.peak_file = None
        for root, limit, peak in (
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.max_usage_in_bytes"),
            ("/sys/fs/cgroup", "memory.max", "memory.peak"),
        ):
            folder = Path(root) / f"petnet-attack-{os.getpid()}-{megabytes}"
            try:
                folder.mkdir()
                (folder / limit).write_text(str(megabytes << 20))
                self.folder, self.peak_file = folder, folder / peak
                return
            except OSError:
                folder.rmdir() if folder.exists() else None

    def enter(self):
        if self.folder:
            (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def peak(self):
        return int(self.peak_file.read_text()) >> 20 if self.folder and self.peak_file.exists() else None

    def remove(self):
        if self.folder:
            time.sleep(0.2)
            self.folder.rmdir()


class Service:
    def __init__(self, megabytes, *more, feedback=None):
        self.megabytes, self.group = megabytes, Group(megabytes)
        budget = [] if self.group.folder else ["--memory", str(megabytes)]
        command = [SERVER, "--host", "127.0.0.1", "--port", str(PORT), "--metrics-addr", "off", "--log", "warn"]
        command += ["--feedback", feedback or tempfile.mkdtemp(), "--drain-delay", "0s", "--grace", "3s", *budget, *more]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL, preexec_fn=self.group.enter)
        while True:
            try:
                urllib.request.urlopen(URL + "/readyz", timeout=1).read()
                break
            except OSError:
                assert self.process.poll() is None, f"it does not start with {megabytes} MB"
                time.sleep(0.02)

    def status(self, name):
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))

    def end(self):
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.group.remove()
        return time.monotonic() - began


def post(path, body, kind="image/jpeg", **headers):
    request = urllib.request.Request(URL + path, body, {"Content-Type": kind, **headers})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            reply.read()
            return reply.status
    except urllib.error.HTTPError as refused:
        return refused.code
    except OSError as broken:
        return repr(broken)


def together(count, work):
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(work())) for _ in range(count)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return {status: answers.count(status) for status in sorted(set(answers), key=str)}


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, depth=8, color=2, before=b""):
    row = b"\0" * (1 + width * depth // 8 * {0: 1, 2: 3, 6: 4}[color])
    pack = zlib.compressobj(9)
    data = b"".join([pack.compress(row) for _ in range(height)] + [pack.flush()])
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + before + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg(width, height, scans):
    """A progressive JPEG whose scans each say in some bytes that all blocks are empty."""

    def segment(marker, content):
        return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content

    frame = struct.pack(">BHHB", 8, height, width, 3) + bytes([1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0])
    tables = b"".join(segment(0xC4, bytes([kind, 1, *[0] * 15, symbol])) for kind, symbol in ((0, 0), (0x10, 0xE0)))
    blocks = -(-width // 8) * -(-height // 8)
    bits = ("0" + "1" * 14) * -(-blocks // 32767)
    bits += "1" * (-len(bits) % 8)
    run = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    scan = [segment(0xDA, bytes([1, 1 + number % 3, 0, 1, 63, 0])) + run for number in range(scans)]
    return b"\xff\xd8" + segment(0xDB, b"\0" + b"\1" * 64) + segment(0xC2, frame) + tables + b"".join(scan) + b"\xff\xd9"


def stalled(count, head, body):
    sockets = []
    for _ in range(count):
        try:
            each = socket.create_connection(("127.0.0.1", PORT), timeout=5)
            each.setblocking(False)
            each.send(head + body)
            sockets.append(each)
        except OSError:
            pass
    return sockets


def served(service, photo, seconds=10):
    """The answer to a valid image, and the seconds until it came."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        if post("/predict", photo) == 200:
            return round(time.monotonic() - began, 1)
        time.sleep(0.1)
    return None


def line(service, what, observed, slowest):
    resident, peak = service.status("VmHWM") >> 10, service.group.peak()
    alive = service.process.poll() is None
    fits = resident <= service.megabytes and slowest is not None and alive
    group = f"{peak:>6}" if peak is not None else "     -"
    print(f"{what:34}{service.megabytes:>6}{resident:>9}{group}  {'ok ' if fits else 'BAD'}  {observed}, valid image after {slowest} s", flush=True)
    if not fits:
        failures.append(what)


def trials(megabytes, photo):
    service = Service(megabytes, "--transfer-timeout", "3s", "--header-timeout", "3s")
    images = {
        "PNG 3,200,000 x 1": png(3_200_000, 1, color=0),
        "PNG 65,535 x 760": png(65_535, 760, color=0),
        "PNG 6000 x 4000, 16 bits": png(6000, 4000, 16, 6),
        "PNG with a profile of 1 GB": png(64, 64, before=chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(1 << 30), 9))),
        "JPEG 8160 x 6120, 16 scans": jpeg(8160, 6120, 16),
        "JPEG 3264 x 2448, 11,000 scans": jpeg(3264, 2448, 11_000),
        "JPEG 3264 x 2448, 100 scans": jpeg(3264, 2448, 100),
    }
    for what, image in images.items():
        observed = together(16, lambda: post("/predict", image, "image/png"))
        line(service, what, observed, served(service, photo))
    numbers = ",".join(["1"] * 7_900_000)
    request = '{"inputs":[{"name":"pixels","shape":[1,3,224,224],"datatype":"FP32","data":[%s]}]}' % numbers
    packed = gzip.compress(request.encode())
    observed = together(8, lambda: post("/v2/models/cats-vs-dogs-pixels/infer", packed, "application/json", **{"Content-Encoding": "gzip"}))
    line(service, f"{len(packed)} bytes of gzip", observed, served(service, photo))
    head = b"POST /feedback HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1000000\r\n\r\n"
    open_ones = stalled(1000, head, b" " * 900_000)
    line(service, "stalled JSON bodies", f"{len(open_ones)} opened", served(service, photo))
    [each.close() for each in open_ones]
    open_ones = stalled(1030, b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * 100, b"")
    line(service, "answers that are not read", f"{len(open_ones)} opened", served(service, photo))
    [each.close() for each in open_ones]
    slow = [threading.Thread(target=post, args=("/predict", images["JPEG 3264 x 2448, 100 scans"])) for _ in range(16)]
    [each.start() for each in slow]
    time.sleep(0.2)
    took = service.end()
    [each.join() for each in slow]
    print(f"{'SIGTERM under scans':34}{megabytes:>6}{'':15}  {'ok ' if took < 5 else 'BAD'}  ended in {took:.1f} s of 3 s of grace")
    if took >= 5:
        failures.append("SIGTERM")


def answer(path, body, kind="image/jpeg"):
    """A JSON answer, or the status of a refusal."""
    try:
        with urllib.request.urlopen(urllib.request.Request(URL + path, body, {"Content-Type": kind}), timeout=60) as reply:
            return json.load(reply)
    except urllib.error.HTTPError as refused:
        return refused.code


def full_disk(photo):
    """Feedback on a small disk that fills up and is emptied again: images are served throughout, labels are kept when they fit."""
    folder = Path(tempfile.mkdtemp())
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", folder]).returncode:
        print(f"{'a full disk':34}  left out: it needs root, to mount a small one")
        return
    service = Service(384, feedback=str(folder / "feedback"))
    label = lambda: answer("/feedback", json.dumps({"prediction_id": asked["prediction_id"], "label": "cat"}).encode(), "application/json")
    try:
        asked = answer("/predict", photo)
        before = label() != 500
        with open(folder / "filler", "wb", buffering=0) as filler:
            try:
                while filler.write(bytes(4096)):
                    pass
            except OSError:
                pass
        predictions = {post("/predict", photo) for _ in range(200)}
        full = label()
        (folder / "filler").unlink()
        began = time.monotonic()
        while label() == 500 and time.monotonic() - began < 60:
            time.sleep(0.5)
        took = time.monotonic() - began
        with urllib.request.urlopen(URL + "/feedback/export", timeout=10) as export:
            kept = len(export.read().splitlines())
        good = before and predictions == {200} and full == 500 and took < 60 and kept == 1
        print(f"{'a full disk':34}  {'ok ' if good else 'BAD'}  predictions {predictions}, label {full}; taken {took:.1f} s after there is room, {kept} kept")
        if not good:
            failures.append("a full disk")
    finally:
        service.end()
        subprocess.run(["umount", folder], check=True)


def main():
    photo = Path(sys.argv[2]).read_bytes()
    print(f"{'':34}{'limit':>6}{'resident':>9}{'group':>6}  MB, at most; then statuses of requests at once")
    for megabytes in map(int, sys.argv[3:] or ["128", "384", "1024"]):
        trials(megabytes, photo)
    full_disk(photo)
    if failures:
        sys.exit(f"not within the limit: {', '.join(failures)}")


main()
