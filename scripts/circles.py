#!/usr/bin/env python3
"""Finds circles of imports between the top-level modules of each crate, and exits with status 1 where there is one.

    scripts/circles.py               every circle: its modules, and the fewest imports without which there would be none
    scripts/circles.py --all         every arrow of a circle, with one of its imports
    scripts/circles.py --draw FILE   writes the graph as well: Graphviz (FILE.dot) or Mermaid (FILE.mmd)
    scripts/circles.py --deep        also circles between the children of each module; these do not change the status

A module is a file or a folder directly below src/. Its imports are the paths that begin with `crate::` or `super::`, also inside of
functions; tests (`#[cfg(test)]`, files called tests.rs) are left out. A name that lib.rs re-exports counts as an import of the
module that defines it. The root itself, lib.rs or main.rs, is a module where it defines items that others import.
"""

import argparse
import re
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CRATES = {"petnet": "lib.rs", "petnet-train": "main.rs", "petnet-serve": "lib.rs"}
STRINGS_AND_COMMENTS = re.compile(
    r'//[^\n]*|/\*.*?\*/|r(#*)".*?"\1|"(?:\\.|[^"\\])*"|' r"'(?:\\[^']*|[^'\\])'", re.DOTALL
)
TEST_ATTRIBUTE = re.compile(r"#\[cfg\(test\)\]")
# A path from the root or a parent, to the end or to the braces of a `use`.
PATH = re.compile(r"\b((?:\$?crate|super(?:::super)*|self)(?:::\w+)*)(::\{|::\*)?")
RE_EXPORT = re.compile(r"\bpub(?:\(crate\))? use ((?:crate::|self::)?\w[^;]*);")
TEST_FILE = re.compile(r"#\[cfg\(test\)\]\s*(?:#\[[^\]]*\]\s*)*(?:pub(?:\(\w+\))? )?mod (\w+)\s*;")


def without_text(source):
    """The source with comments and the contents of strings replaced by spaces, so that offsets and lines stay."""
    return STRINGS_AND_COMMENTS.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), source)


def end_of_block(text, opening):
    """The offset behind the bracket that closes the one at `opening`."""
    depth = 0
    for at in range(opening, len(text)):
        depth += (text[at] == "{") - (text[at] == "}")
        if depth == 0:
            return at + 1
    return len(text)


def without_tests(text):
    """The text with every item behind `#[cfg(test)]` replaced by spaces."""
    while found := TEST_ATTRIBUTE.search(text):
        stop = re.compile(r"[;{]").search(text, found.end())
        end = len(text) if not stop else stop.end() if stop[0] == ";" else end_of_block(text, stop.start())
        text = text[: found.start()] + re.sub(r"[^\n]", " ", text[found.start() : end]) + text[end:]
    return text


def branches(tree):
    """The paths of a `use` tree: a::{b, c::{d}} gives [a, b] and [a, c, d]."""
    tree = re.sub(r"\s+as\s+\w+", "", tree.strip())
    head, brace, rest = tree.partition("{")
    prefix = [part for part in re.sub(r"\s", "", head).split("::") if part]
    if not brace:
        yield prefix
        return
    depth, start = 0, 0
    inner = rest[: rest.rindex("}")] if "}" in rest else rest
    for at, char in enumerate(inner + ","):
        depth += (char == "{") - (char == "}")
        if char == "," and depth == 0:
            if inner[start:at].strip():
                yield from (prefix + branch for branch in branches(inner[start:at]))
            start = at + 1


def aliases(tree):
    """The names under which a re-export is known, and their paths."""
    for path in branches(tree):
        if path:
            yield path[-1], path
    for old, new in re.findall(r"(\w+)\s+as\s+(\w+)", tree):
        yield from ((new, path) for path in branches(tree) if path and path[-1] == old)


class Crate:
    """The modules of a crate and the arrows between them."""

    def __init__(self, folder, root_file):
        self.name, self.source = folder, ROOT / folder / "src"
        self.root = root_file.removesuffix(".rs")
        self.texts = {}
        for path in sorted(self.source.rglob("*.rs")):
            place = path.relative_to(self.source)
            stem = place.with_suffix("").parts
            # A crate with lib.rs has main.rs as a crate of its own.
            if stem[-1] == "tests" or "tests" in stem[:-1] or (root_file == "lib.rs" and place.name == "main.rs" and len(stem) == 1):
                continue
            module = () if str(place) == root_file else stem[:-1] if stem[-1] == "mod" else stem
            self.texts.setdefault(module, []).append((path, without_text(path.read_text())))
        for module in [(*module, name) for module, files in self.texts.items() for _, text in files for name in TEST_FILE.findall(text)]:
            self.texts.pop(module, None)
        for files in self.texts.values():
            files[:] = [(path, without_tests(text)) for path, text in files]
        self.top = {module[0] for module in self.texts if module}
        self.exports = {}
        for _, text in self.texts[()]:
            for found in RE_EXPORT.finditer(text):
                for name, path in aliases(found[1]):
                    steps = [step for step in path if step not in ("crate", "self")]
                    if steps and steps[0] in self.top:
                        self.exports[name] = steps

    def resolve(self, module, path):
        """The steps from the root of the crate, of a path that stands in `module`."""
        steps = list(module)
        for at, step in enumerate(path):
            if step in ("crate", "$crate"):
                steps = []
            elif step == "super":
                steps = steps[:-1]
            elif step != "self":
                steps += path[at:]
                break
        steps = [step for step in steps if step != "self"]
        if steps and steps[0] not in self.top and steps[0] in self.exports:
            steps = self.exports[steps[0]] + steps[1:]
        return tuple(steps)

    def imports(self):
        """(module, steps of what it names, place) of every path; `use` trees are unfolded."""
        for module, files in self.texts.items():
            for path, text in files:
                place = path.relative_to(ROOT)
                if not module:
                    text = RE_EXPORT.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)
                    # In the root, a module's name needs no prefix.
                    text = re.sub(rf"(?<![:\w])({'|'.join(sorted(self.top))})::", r"crate::\1::", text)
                for found in PATH.finditer(text):
                    line = text.count("\n", 0, found.start()) + 1
                    if re.search(r"pub\(in $", text[: found.start()]):
                        continue
                    head = found[1].split("::")
                    if found[2] == "::{":
                        end = end_of_block(text, found.end() - 1)
                        tails = branches(text[found.end() - 1 : end])
                    else:
                        tails = [[]]
                    for tail in tails:
                        yield module, self.resolve(module, head + tail), f"{place}:{line}"

    def graph(self, parent=()):
        """{child of parent: {child that it imports: [imports]}}; the root stands for the items that it defines itself."""
        arrows, depth = defaultdict(lambda: defaultdict(list)), len(parent)
        for module, steps, place in self.imports():
            if module[:depth] != parent or steps[:depth] != parent:
                continue
            source, target = module[depth : depth + 1], steps[depth : depth + 1]
            if depth and (not source or not target or not self.is_module(parent + target)):
                continue
            source = source[0] if source else self.root
            target = target[0] if target and self.is_module(parent + target) else self.root
            # `use super::*` and the like name no module, and the root's own macros are used everywhere.
            if target == self.root and len(steps) == depth:
                continue
            if source != target:
                arrows[source][target].append(f"{place} names {'::'.join(('crate', *steps))}")
        return arrows

    def is_module(self, steps):
        return any(module[: len(steps)] == steps for module in self.texts)

    def parents(self):
        """Every module that has children."""
        return sorted({module[:-1] for module in self.texts if len(module) > 1})


def circles(arrows):
    """Strongly connected components of more than one module (Tarjan, 1972)."""
    index, low, stack, on_stack, found = {}, {}, [], set(), []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        on_stack.add(node)
        for target in arrows.get(node, ()):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in on_stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            component = []
            while not component or component[-1] != node:
                component.append(stack.pop())
                on_stack.discard(component[-1])
            if len(component) > 1:
                found.append(sorted(component))

    for node in sorted(arrows):
        if node not in index:
            visit(node)
    return found


def back_arrows(members, arrows, root):
    """The arrows of a circle that point backwards in an order of its modules with few imports pointing backwards.

    The order is found by moving one module at a time to its best place, which need not give the fewest of all. The root of the
    crate comes first wherever it imports something: it declares the modules.
    """
    weight = {(a, b): len(arrows[a][b]) + 1000 * (a == root) for a in members for b in members if b in arrows.get(a, ())}
    order = sorted(members, key=lambda m: sum(w for (a, b), w in weight.items() if b == m) - sum(w for (a, b), w in weight.items() if a == m))
    improved = True
    while improved:
        improved = False
        for module in members:
            rest = [other for other in order if other != module]
            # Imports that point backwards with the module in front of all others, then behind one after the other.
            cost = sum(weight.get((other, module), 0) for other in rest)
            costs = [cost]
            for other in rest:
                cost += weight.get((module, other), 0) - weight.get((other, module), 0)
                costs.append(cost)
            best = costs.index(min(costs))
            if costs[best] < costs[order.index(module)]:
                order = rest[:best] + [module] + rest[best:]
                improved = True
    place = {module: n for n, module in enumerate(order)}
    return sorted((a, b) for a, b in weight if place[b] < place[a])


def report(title, arrows, everything, root):
    """Prints the circles of a graph; returns their number."""
    found = circles(arrows)
    for members in found:
        print(f"{title}: circle of {', '.join(members)}")
        if everything:
            for source in members:
                for target, places in sorted(arrows[source].items()):
                    if target in members:
                        print(f"    {source} -> {target} ({len(places)}): {places[0]}")
            continue
        print("  no circle without:")
        for source, target in back_arrows(members, arrows, root):
            print(f"    {source} -> {target}")
            for place in arrows[source][target]:
                print(f"        {place}")
    return len(found)


def draw(path, crates):
    """Writes the graphs of all crates; arrows of a circle are red."""
    mermaid = path.suffix == ".mmd"
    lines = ["flowchart LR"] if mermaid else ["digraph petnet {", "  rankdir=LR; node [shape=box];"]
    number = 0
    for crate in crates:
        arrows, name = crate.graph(), crate.name.replace("-", "_")
        group = {module: n for n, members in enumerate(circles(arrows)) for module in members}
        lines.append(f"  subgraph {name}" if mermaid else f'  subgraph "cluster_{name}" {{ label="{crate.name}";')
        for source, targets in sorted(arrows.items()):
            for target in sorted(targets):
                red = source in group and group[source] == group.get(target)
                if mermaid:
                    lines.append(f"    {name}.{source}[{source}] --> {name}.{target}[{target}]")
                    lines += [f"    linkStyle {number} stroke:red"] if red else []
                    number += 1
                else:
                    color = " [color=red]" if red else ""
                    ends = [f'"{crate.name}/{module}"' for module in (source, target)]
                    lines.append(f"    {ends[0]} -> {ends[1]}{color};")
        lines.append("  end" if mermaid else "  }")
    path.write_text("\n".join(lines + ([] if mermaid else ["}"])) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", type=Path, metavar="FILE")
    parser.add_argument("--deep", action="store_true")
    parser.add_argument("--all", action="store_true")
    arguments = parser.parse_args()
    crates = [Crate(*each) for each in CRATES.items()]
    number = sum(report(crate.name, crate.graph(), arguments.all, crate.root) for crate in crates)
    if arguments.deep:
        for crate in crates:
            for parent in crate.parents():
                report(f"{crate.name}, inside of {'::'.join(parent)}", crate.graph(parent), arguments.all, crate.root)
    if arguments.draw:
        draw(arguments.draw, crates)
    modules = sum(len(crate.top) for crate in crates)
    print(f"{number} circles between {modules} modules of {len(crates)} crates")
    return 1 if number else 0


if __name__ == "__main__":
    sys.exit(main())
