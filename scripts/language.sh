#!/usr/bin/env bash
# Finds words and phrases that scripts/banned-phrases.txt replaces by a standard term, and comments of Rust files that begin with
# What, Whether, How, Where or Who. Prints the place and the word to use; exits with status 1 where there is one. Needs python3.
# Usage: scripts/language.sh [FILE...]; by default every tracked file
set -euo pipefail
cd "$(dirname "$0")/.."
python3 - "$@" <<'PYTHON'
import re
import subprocess
import sys
from pathlib import Path

KINDS = {".rs", ".md", ".yaml", ".yml", ".sh", ".py", ".mjs", ".js", ".toml", ".html"}
# History and licences are quoted as they were; these two files list the phrases themselves.
LEFT_OUT = re.compile(r"(^|/)(vendor|LICENSE|NOTICE)|^CHANGELOG\.md$|^docs/STYLE\.md$|^scripts/language\.sh$")
FRAGMENT = re.compile(r"^\s*//[/!]?\s*(What|Whether|How|Where|Who)\b")
NAMED = re.compile(r"`[^`]*`|\]\([^)]*\)|https?://\S+")


def rules():
    for number, line in enumerate(Path("scripts/banned-phrases.txt").read_text().splitlines(), 1):
        if line and not line.startswith("#"):
            cells = re.split(r"\s*\|\|\s*", line)
            if len(cells) not in (3, 4):
                sys.exit(f"scripts/banned-phrases.txt:{number}: three or four cells between ||")
            yield cells[0], re.compile(cells[1], re.IGNORECASE), cells[2], re.compile(cells[3] if len(cells) == 4 else r"(?!)")


def prose(path, lines):
    """(line number, text) of comments, and of Markdown outside of code; names in backticks and links are left out."""
    fence = False
    for number, line in enumerate(lines, 1):
        if path.endswith(".md"):
            fence ^= line.lstrip().startswith("```")
            found = None if fence else line
        elif path.endswith((".rs", ".js", ".mjs")):
            found = re.search(r"(?:^|\s)//[/!]?(.*)", line)
            fence = fence != bool(found and found[1].lstrip().startswith("```"))
            found = found[1] if found and not fence else None
        else:
            found = re.search(r"^\s*#(?!!)(.*)", line)
            found = found and found[1]
        if found:
            yield number, NAMED.sub(" ", found)


def faults(path, lines, banned):
    if path.endswith(".rs"):
        for number, line in enumerate(lines, 1):
            if found := FRAGMENT.match(line):
                yield number, found[1], "a sentence or a noun phrase that names the thing"
    comments = list(prose(path, lines))
    for scope, pattern, instead, allowed in banned:
        if not allowed.search(path):
            for number, text in comments if scope == "prose" else enumerate(lines, 1):
                if found := pattern.search(text):
                    yield number, found[0], instead


files = sys.argv[1:] or subprocess.check_output(["git", "ls-files", "-z"], text=True).strip("\0").split("\0")
banned, count = list(rules()), 0
for path in files:
    if Path(path).suffix in KINDS and not LEFT_OUT.search(path) and Path(path).is_file():
        for number, said, instead in sorted(set(faults(path, Path(path).read_text().splitlines(), banned))):
            print(f"{path}:{number}: `{said.strip()}`: write {instead}")
            count += 1
if count:
    print(f"{count} places; the list is scripts/banned-phrases.txt, its reasons are in docs/STYLE.md")
    sys.exit(1)
print("no banned phrase")
PYTHON
