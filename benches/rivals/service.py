"""One measured service: its processes, and the load that it gets."""

import http.client
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

BOUNDARY = "PeT"
TICKS = os.sysconf("SC_CLK_TCK")


class Absent(Exception):
    """The service cannot be measured on this machine."""


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def exchange(port, *request):
    """Status and body of the answer to one request; 503 while nobody listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(*request)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException):
        return 503, b""
    finally:
        connection.close()


def ask(port, photo):
    """The answer to one photo as a multipart form, or None while there is none."""
    # Some services listen before they are ready and say so here; others do not know the path.
    if exchange(port, "GET", "/health")[0] == 503:
        return None
    head = f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="file"; filename="photo.jpg"\r\n'
    body = f"{head}content-type: image/jpeg\r\n\r\n".encode() + photo + f"\r\n--{BOUNDARY}--\r\n".encode()
    headers = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
    status, text = exchange(port, "POST", "/predict", body, headers)
    return json.loads(text) if status == 200 else None


def fields(path):
    """The `name: number kB` lines of a file of /proc in MB."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) / 1024 for words in lines if words[-1] == "kB"}


class Service:
    """A running service. `command` is a function of the port."""

    def __init__(self, command, photo, environment=None, folder=None, patience=120):
        self.port = free_port()
        self.log = Path(os.environ.get("RIVALS_LOGS", "/dev/null"))
        if self.log.is_dir():
            self.log = self.log / f"{self.port}.log"
        began = time.perf_counter()
        with open(self.log, "w") as log:
            command = list(map(str, command(self.port)))
            environment = {**os.environ, **(environment or {})}
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
        self.answer = None
        while self.answer is None:
            if self.process.poll() is not None or time.perf_counter() - began > patience:
                self.stop()
                raise Absent(f"{command[0]} gives no answer")
            time.sleep(0.002)
            self.answer = ask(self.port, photo)
        self.start_ms = (time.perf_counter() - began) * 1e3

    def processes(self):
        """The folders in /proc of the process and of its descendants."""
        children = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(folder)
        found = [Path(f"/proc/{self.process.pid}")]
        for folder in found:
            found += children.get(int(folder.name), [])
        return found

    def memory(self):
        """Peak memory in MB: the proportional set of each process, and the pages by which it was once larger."""
        total = 0
        for process in self.processes():
            now = fields(process / "status")
            total += fields(process / "smaps_rollup")["Pss"] + now["VmHWM"] - now["VmRSS"]
        return total

    def cpu_seconds(self):
        """Processor time of all processes so far."""
        ticks = 0
        for process in self.processes():
            ticks += sum(map(int, (process / "stat").read_text().rpartition(")")[2].split()[11:13]))
        return ticks / TICKS

    def load(self, program, photo, connections, seconds, rate=None):
        """What the load generator saw, and the processor time of the service for a request in milliseconds."""
        command = [program, f"127.0.0.1:{self.port}", photo, connections, seconds, *([rate] if rate else [])]
        before = self.cpu_seconds()
        row = json.loads(subprocess.check_output(list(map(str, command)), text=True))
        row["cpu_ms"] = (self.cpu_seconds() - before) * 1e3 / max(row["served"], 1)
        return row

    def stop(self):
        processes = self.processes() if self.process.poll() is None else []
        self.process.send_signal(signal.SIGTERM)
        try:
            # petnet-serve would serve on for its drain delay.
            self.process.wait(0.5 if len(processes) == 1 else 10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for process in processes[1:]:
            try:
                os.kill(int(process.name), signal.SIGKILL)
            except ProcessLookupError:
                pass
