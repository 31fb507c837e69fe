#!/usr/bin/env python3
"""A soak test of petnet-serve: valid, invalid and slow clients at once, a kill -9 after a third of the time, a reload a minute.

Wrong statuses are counted; resident memory, descriptors and threads must stay flat after the kill. Run by scripts/soak.sh.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

SERVER, PHOTO, SECONDS = sys.argv[1], Path(sys.argv[2]).read_bytes(), float(sys.argv[3]) if len(sys.argv) > 3 else 1800.0
PORT = 18991
URL = f"http://127.0.0.1:{PORT}"
STORE = tempfile.mkdtemp()
counts, wrong, lock = {}, [], threading.Lock()
end, up = threading.Event(), threading.Event()


def start():
    command = [SERVER, "--host", "127.0.0.1", "--port", str(PORT), "--metrics-addr", "off", "--log", "warn"]
    command += ["--feedback", STORE, "--memory", "256", "--transfer-timeout", "5s", "--header-timeout", "5s"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while True:
        try:
            urllib.request.urlopen(URL + "/readyz", timeout=1).read()
            break
        except OSError:
            assert process.poll() is None, "it does not start"
            time.sleep(0.05)
    up.set()
    return process


def note(kind, status, right):
    with lock:
        counts[kind, status] = counts.get((kind, status), 0) + 1
        if up.is_set() and status not in right:
            wrong.append((kind, status))


def post(kind, path, body, content, right):
    was_up = up.is_set()
    request = urllib.request.Request(URL + path, body, {"Content-Type": content})
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            reply.read()
            status = reply.status
    except urllib.error.HTTPError as refused:
        status = refused.code
        # A server that has just started answers 503 for a moment.
        if status == 503 and not was_up:
            right = (*right, 503)
    except OSError:
        # The kill ends open connections.
        status = "broken" if was_up and up.is_set() else "killed"
        right = (*right, "killed")
    note(kind, status, right)


def good():
    while not end.is_set():
        post("good", "/predict", PHOTO, "image/jpeg", (200,))
        time.sleep(0.02)


def bad():
    bomb = b"\x89PNG\r\n\x1a\n" + bytes.fromhex("0000000d49484452ffffffff00000001080200000000000000")
    trials = [
        ("/predict", PHOTO[: len(PHOTO) // 2], "image/jpeg", (422,)),
        ("/predict", b"", "image/jpeg", (400,)),
        ("/predict", bomb, "image/png", (413, 422)),
        ("/predict", b"{", "application/json", (400,)),
        ("/predict", b"x", "text/plain", (415,)),
        ("/nothing", b"x", "text/plain", (404,)),
        ("/feedback", b'{"prediction_id": 1}', "application/json", (400,)),
        ("/v2/models/cats-vs-dogs/infer", b"[" * 100_000, "application/json", (400,)),
        ("/admin/reload", b"", "text/plain", (403,)),
    ]
    number = 0
    while not end.is_set():
        path, body, content, right = trials[number % len(trials)]
        post("bad", path, body, content, right)
        number += 1
        time.sleep(0.05)


def slow():
    head = f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: image/jpeg\r\ncontent-length: {len(PHOTO)}\r\nconnection: close\r\n\r\n"
    while not end.is_set():
        was_up = up.is_set()
        try:
            with socket.create_connection(("127.0.0.1", PORT), timeout=20) as stream:
                stream.sendall(head.encode())
                for at in range(0, len(PHOTO), 2000):
                    stream.sendall(PHOTO[at : at + 2000])
                    time.sleep(0.2)
                status = int(stream.recv(65536).split()[1])
        except (OSError, IndexError, ValueError):
            status = "broken" if was_up and up.is_set() else "killed"
        note("slow", status, (200, "killed"))


def leaver():
    while not end.is_set():
        try:
            with socket.create_connection(("127.0.0.1", PORT), timeout=5) as stream:
                stream.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\nabc")
                time.sleep(0.2)
        except OSError:
            time.sleep(0.2)


def sample(process):
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    values = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("VmRSS", "Threads"))}
    return int(values["VmRSS"]) >> 10, len(os.listdir(f"/proc/{process.pid}/fd")), int(values["Threads"])


def main():
    process = start()
    kinds = [good, good, bad, *[slow] * 8, *[leaver] * 8]
    threads = [threading.Thread(target=kind) for kind in kinds]
    [thread.start() for thread in threads]
    began, samples, killed = time.monotonic(), [], False
    print(f"{'minute':>7}{'MB':>6}{'files':>7}{'threads':>9}{'answers':>9}{'wrong':>7}")
    while (passed := time.monotonic() - began) < SECONDS:
        time.sleep(min(30, SECONDS / 20))
        process.send_signal(signal.SIGHUP)
        if not killed and passed > SECONDS / 3:
            up.clear()
            process.kill()
            process.wait()
            time.sleep(0.5)
            process, killed = start(), True
            continue
        row = sample(process)
        samples.append((killed, row))
        print(f"{passed / 60:>7.1f}{row[0]:>6}{row[1]:>7}{row[2]:>9}{sum(counts.values()):>9}{len(wrong):>7}", flush=True)
    end.set()
    [thread.join() for thread in threads]
    process.terminate()
    process.wait(40)
    print("answers:", dict(sorted(counts.items(), key=str)))
    after = [row for killed, row in samples if killed]
    # The first third warms up: a process that has just started has less than it will need.
    third = max(1, len(after) // 3)
    means = [[sum(row[i] for row in part) / len(part) for i in range(3)] for part in (after[third : 2 * third], after[-third:])]
    growth = [late / early for early, late in zip(*means)]
    print(f"last third over the one before, after the kill: memory {growth[0]:.2f}, descriptors {growth[1]:.2f}, threads {growth[2]:.2f}")
    if wrong or max(growth) > 1.2:
        sys.exit(f"not flat, or wrong statuses: {wrong[:10]}")


main()
