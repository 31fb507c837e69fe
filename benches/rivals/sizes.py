"""Prints the size in MB of Python packages and of all that they depend on, without the interpreter.

Usage: sizes.py PACKAGE...
"""

import sys
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement


def closure(roots):
    found, waiting = {}, [Requirement(root) for root in roots]
    seen = set()
    while waiting:
        wanted = waiting.pop()
        extras = {"", *wanted.extras}
        if (wanted.name, *sorted(extras)) in seen:
            continue
        seen.add((wanted.name, *sorted(extras)))
        try:
            package = distribution(wanted.name)
        except PackageNotFoundError:
            continue
        found[package.metadata["Name"]] = package
        for line in package.requires or []:
            needed = Requirement(line)
            if not needed.marker or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(needed)
    return found.values()


def size(package):
    paths = {path.locate().resolve() for path in package.files or []}
    return sum(path.stat().st_size for path in paths if path.is_file())


if __name__ == "__main__":
    print(sum(map(size, closure(sys.argv[1:]))) / 1e6)
