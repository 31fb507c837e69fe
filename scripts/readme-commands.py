#!/usr/bin/env python3
"""Runs the commands of README.md on a fresh clone, in order, as a reader would.

    scripts/readme-commands.py                  clone HEAD, build, run each `sh` block of README.md
    scripts/readme-commands.py --release DIR    the same with the programs in DIR in place of `cargo run`; other cargo commands are left out
    scripts/readme-commands.py --list           print the blocks of README.md and of the book's pages, and what becomes of each

An HTML comment on the line before a block changes what becomes of it:

    <!-- commands: skip REASON -->     it is not run
    <!-- commands: server PORT -->     it is started, waited for, left running for the blocks after it, and ended at the end

Images that commands name are made here: rex.jpg is examples/pictures/cat.jpg, photos/ has drawn images of two classes."""
import argparse
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(?:^<!-- commands: (?P<verb>skip|server) (?P<rest>.*?) -->\n)?^```sh\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAM = re.compile(r"cargo run --release (?:-p|--bin) (petnet-serve|petnet-train)(?: --(?= |$))?", re.MULTILINE)
START = 300  # seconds until a server listens; without --release it is compiled first
LONGEST = 3600  # seconds of one block


@dataclass
class Block:
    page: Path
    line: int
    text: str
    skip: str = ""
    port: int = 0

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    found = []
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("text"))
        block = Block(page, line, match["text"])
        if match["verb"] == "skip":
            block.skip = match["rest"]
        elif match["verb"] == "server":
            block.port = int(match["rest"])
        found.append(block)
    fences = len(re.findall(r"^```sh$", text, re.MULTILINE))
    if fences != len(found):
        sys.exit(f"{page}: {fences} blocks begin, {len(found)} end")
    return found


def pages() -> list[Path]:
    names = re.findall(r"\]\(([\w-]+\.md)\)", (ROOT / "docs/SUMMARY.md").read_text())
    return [ROOT / "README.md", *(ROOT / "docs" / name for name in names)]


def png(path: Path, pixel) -> None:
    """A drawn image of 96 x 96 pixels; `pixel` gives the colour at (x, y)."""
    side = 96
    rows = b"".join(b"\0" + bytes(c & 255 for x in range(side) for c in pixel(x, y)) for y in range(side))
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">2I5B", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def draw(clone: Path) -> None:
    shutil.copy(clone / "examples/pictures/cat.jpg", clone / "rex.jpg")
    for name in ["stripes", "discs"]:
        (clone / "photos" / name).mkdir(parents=True)
    for number in range(24):
        shift, width, tint = number * 7, 6 + number % 11, 30 + number * 9
        png(clone / f"photos/stripes/{number}.png", lambda x, y: (200 if (x + y + shift) // width % 2 else 20, tint, 255 - tint))
        inside = lambda x, y: (x - 30 - shift % 37) ** 2 + (y - 30 - width * 2) ** 2 < (10 + width) ** 2
        png(clone / f"photos/discs/{number}.png", lambda x, y: (220, 220, tint) if inside(x, y) else (tint, 60, 40 + y))


def programs(text: str, release: Path) -> tuple[str, str]:
    """A block's text with built programs in place of `cargo run`, and a reason if other commands of cargo are left."""
    text = PROGRAM.sub(lambda found: str(release / found[1]), text)
    return text, "it needs cargo" if re.search(r"^cargo ", text, re.MULTILINE) else ""


def wait_for(port: int, process: subprocess.Popen, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with status {process.returncode}")
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise RuntimeError(f"nothing listens on port {port} after {seconds} s")


def run(work: Path, release: Path | None) -> int:
    clone = work / "petnet"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    draw(clone)
    # The port for metrics alone may be taken by another service of this machine.
    environment = os.environ | {"MLFLOW_TRACKING_URI": "off", "PETNET_METRICS_ADDR": "off"}
    servers, failed = [], 0
    try:
        for block in blocks(ROOT / "README.md"):
            text, reason = programs(block.text, release) if release else (block.text, "")
            if reason := block.skip or reason:
                print(f"-- {block.where}: left out, {reason}")
                continue
            print(f"== {block.where}\n{text}", end="", flush=True)
            began = time.monotonic()
            command = ["bash", "-euo", "pipefail", "-c", text]
            try:
                if block.port:
                    # A group of its own, so that the server is ended with the shell that started it.
                    server = subprocess.Popen(command, cwd=clone, env=environment, start_new_session=True)
                    servers.append(server)
                    wait_for(block.port, server, START)
                else:
                    subprocess.run(command, cwd=clone, env=environment, check=True, timeout=LONGEST)
                print(f"== {time.monotonic() - began:.1f} s\n")
            except (RuntimeError, subprocess.SubprocessError) as error:
                failed += 1
                print(f"== FAILED: {error}\n")
    finally:
        for server in servers:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGTERM)
        for server in servers:
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
    print(f"{failed} blocks failed" if failed else "every block ran")
    return 1 if failed else 0


def example(page: Path) -> str:
    found = re.search(r"^```rust\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--release", type=Path, metavar="DIR")
    arguments = parser.parse_args()
    # The crate's README is compiled as a test of the documentation, the one at the root is not.
    if example(ROOT / "README.md") != example(ROOT / "petnet/README.md"):
        sys.exit("the first example of README.md is not that of petnet/README.md, which is compiled")
    if arguments.list:
        for page in pages():
            for block in blocks(page):
                fate = f"skip: {block.skip}" if block.skip else f"server on port {block.port}" if block.port else "run"
                print(f"{block.where} [{fate if page.name == 'README.md' else 'book'}]\n{block.text}")
        return 0
    with tempfile.TemporaryDirectory(prefix="petnet-readme-") as work:
        return run(Path(work), arguments.release and arguments.release.resolve())


if __name__ == "__main__":
    sys.exit(main())
