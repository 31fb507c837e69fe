#!/usr/bin/env bash
# The engine's layers over random shapes under valgrind: no read or write outside of a buffer. (Valgrind
# has no AVX-512, so these are the AVX2 kernels.)
# Usage: scripts/valgrind.sh
set -euo pipefail
cd "$(dirname "$0")/.."
tests=$(cargo test --release --no-run 2>&1 | sed -n 's|.*unittests src/lib.rs (\(.*/petnet-[0-9a-f]*\))|\1|p' | head -n 1)
valgrind --error-exitcode=1 --quiet "$tests" --test-threads 1 a_convolution_equals_its_definition
