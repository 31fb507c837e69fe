#!/usr/bin/env bash
# Checks the links of the documentation and builds the book into target/book; installs mdBook below target/ where it is
# missing (some minutes of compiling).
# Usage: scripts/book.sh [--check]; with --check, links alone, without mdBook
set -euo pipefail
cd "$(dirname "$0")/.."

python3 scripts/book_links.py --check
[ "${1:-}" != --check ] || exit 0

version=0.5.4
if ! command -v mdbook >/dev/null; then
    [ -x target/mdbook/bin/mdbook ] || cargo install --locked --root target/mdbook "mdbook@$version"
    PATH="$PWD/target/mdbook/bin:$PATH"
fi
mdbook build
# Each page was rendered, and nothing in it still points to a Markdown file of the repository by a relative path.
for page in docs/*.md; do
    name=$(basename "$page" .md)
    [ "$name" = SUMMARY ] || [ -s "target/book/$name.html" ] || { echo "target/book/$name.html is missing" >&2; exit 1; }
done
! grep -rlE 'href="\.\./' target/book --include='*.html' || { echo "links out of the book" >&2; exit 1; }
echo "target/book/index.html"
