#!/usr/bin/env python3
"""Links of the documentation.

As a preprocessor of mdBook (book.toml): links from a page to files of the repository outside of docs/ become addresses of the
repository. With `--check`: prints every relative link, in the pages and in the Markdown files at the root, whose file or heading
does not exist, every path in code quotes that does not, every name in the recipes (docs/adding-*.md) that no source has, and every page that
docs/SUMMARY.md does not list; ends with status 1 if there are any."""
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
REPOSITORY = "https://github.com/petnet/petnet/blob/main/"
# [text](target), also of images.
LINK = re.compile(r"(\]\()([^)\s]+)((?:\s+\"[^\"]*\")?\))")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]*`")


def outward(page: Path, target: str) -> str:
    """The address in the repository of a relative link that leads out of docs/, else the link as it is."""
    if re.match(r"[a-z]+:|#", target):
        return target
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve()
    if file.is_relative_to(DOCS):
        return target
    return REPOSITORY + file.relative_to(ROOT).as_posix() + (f"#{anchor}" if anchor else "")


def rewrite(items: list) -> None:
    for item in items:
        chapter = item.get("Chapter") if isinstance(item, dict) else None
        if chapter and chapter.get("path"):
            page = DOCS / chapter["path"]
            replace = lambda found: found[1] + outward(page, found[2]) + found[3]
            chapter["content"] = LINK.sub(replace, chapter["content"])
            rewrite(chapter["sub_items"])


def headings(file: Path) -> set[str]:
    """Anchors of a Markdown file's headings, as GitHub and mdBook make them."""
    anchors: set[str] = set()
    for line in FENCE.sub("", file.read_text()).splitlines():
        if not line.startswith("#"):
            continue
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", line.lstrip("#").strip()).lower()
        anchor = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        number = 0
        while (unique := f"{anchor}-{number}" if number else anchor) in anchors:
            number += 1
        anchors.add(unique)
    return anchors


def broken(page: Path, tracked: set[str]) -> list[str]:
    """Links of a page that lead nowhere. A file that git does not track will not be there for others."""
    faults = []
    for _, target, _ in LINK.findall(CODE.sub("", FENCE.sub("", page.read_text()))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        name = file.relative_to(ROOT).as_posix() if file.is_relative_to(ROOT) else ""
        known = name in tracked or any(other.startswith(f"{name}/") for other in tracked)
        if not known:
            faults.append(f"{page.relative_to(ROOT)}: no file {target}")
        elif anchor and file.suffix == ".md" and anchor not in headings(file):
            faults.append(f"{page.relative_to(ROOT)}: no heading {target}")
    return faults


def stale(page: Path, tracked: set[str], words: set[str]) -> list[str]:
    """Paths in code quotes that the repository does not have (any more), and, in recipes, names that no source has. Names in a recipe's
    own code, which shows what to write, are none of the repository's."""
    faults = []
    text = page.read_text()
    own = set(re.findall(r"\w+", " ".join(fence[0] for fence in FENCE.finditer(text))))
    for code in re.findall(r"`([^`\n]+)`", FENCE.sub("", text)):
        where = page.relative_to(ROOT)
        if re.fullmatch(r"(petnet[\w-]*|configs|scripts|benches|examples|k8s|datasets)/[\w./-]+\.\w+", code) and code not in tracked:
            faults.append(f"{where}: no file {code}")
        if page.name.startswith("adding-") and code not in tracked and (name := re.fullmatch(r"((?:\w+(?:::|\.))*\w+)!?(\(.*\))?", code)):
            faults += [f"{where}: no source has {word}" for word in re.findall(r"\w+", name[1]) if word not in words | own and word[0] != "_"]
    return faults


def check() -> int:
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True)
    tracked = {name for name in listed.stdout.decode().split("\0") if (ROOT / name).is_file()}
    pages = sorted(DOCS.glob("*.md"))
    files = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("*/*.md")), *sorted(ROOT.glob("*/*/README.md"))]
    files = [file for file in dict.fromkeys(files) if file.relative_to(ROOT).as_posix() in tracked]
    sources = [(ROOT / name).read_text() for name in tracked if name.endswith((".rs", ".toml", ".yaml"))]
    words = {word for source in sources for word in re.findall(r"\w+", source)}
    faults = [fault for file in files for fault in broken(file, tracked)]
    faults += [fault for file in files if file.name != "CHANGELOG.md" for fault in stale(file, tracked, words)]
    summary = (DOCS / "SUMMARY.md").read_text()
    faults += [f"docs/SUMMARY.md: {page.name} is not listed" for page in pages
               if page.name != "SUMMARY.md" and f"({page.name})" not in summary]
    print("\n".join(faults) or f"{len(files)} files, no broken link")
    return 1 if faults else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--check"]:
        sys.exit(check())
    if sys.argv[1:2] != ["supports"]:
        _, book = json.load(sys.stdin)
        rewrite(book.get("items", book.get("sections", [])))
        json.dump(book, sys.stdout)
