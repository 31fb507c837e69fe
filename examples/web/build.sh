#!/usr/bin/env bash
# Builds the page into target/web. Needs Rust with the target wasm32-unknown-unknown (`rustup target add
# wasm32-unknown-unknown`). Where that is not available, Debian's rustc-web and rust-web-src are used, and the standard
# library is built too (about two minutes on two cores).
set -euo pipefail
cd "$(dirname "$0")/../.."
target=wasm32-unknown-unknown
# Every browser since 2023 supports 128-bit SIMD.
export RUSTFLAGS="-Ctarget-feature=+simd128"
export CARGO_TARGET_DIR="${PETNET_WEB_TARGET:-$PWD/target/wasm}"
if [ -d "$(rustc --print sysroot)/lib/rustlib/$target" ]; then
    cargo build --locked --release --target "$target" -p petnet-web
elif [ -d /usr/lib/rustlib/src/rust/library ] && /usr/bin/rustc --version >/dev/null 2>&1; then
    PATH="$(rustc --print sysroot)/lib/rustlib/$(rustc -vV | sed -n 's/^host: //p')/bin:$PATH" \
        RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 RUSTFLAGS="$RUSTFLAGS -Clinker=rust-lld" \
        /usr/bin/cargo build --locked --release --target "$target" -p petnet-web -Zbuild-std=std,panic_abort
else
    echo "no standard library for $target: rustup target add $target, or apt-get install rustc-web rust-web-src cargo-web" >&2
    exit 1
fi
# The tool must have the same version as the library.
version=$(sed -n '/^name = "wasm-bindgen"$/{n;s/version = "\(.*\)"/\1/p}' Cargo.lock)
tools="$CARGO_TARGET_DIR/tools"
export PATH="$tools/bin:$PATH"
[ "$(wasm-bindgen --version 2>/dev/null)" = "wasm-bindgen $version" ] ||
    env -u RUSTFLAGS cargo install --quiet --locked wasm-bindgen-cli --version "$version" --root "$tools"
mkdir -p target/web
wasm-bindgen --target web --no-typescript --out-dir target/web "$CARGO_TARGET_DIR/$target/release/petnet_web.wasm"
cp examples/web/index.html target/web/
ls -l target/web
