#!/usr/bin/env bash
# Fuzzes each parser of untrusted input for some seconds, from small seeds. Needs a nightly compiler and
# cargo-fuzz, which it installs. Findings are written to fuzz/artifacts.
# Usage: scripts/fuzz.sh [SECONDS a target, default 60] [TARGET...]
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60}
targets=("${@:2}")
[ ${#targets[@]} -gt 0 ] || targets=(decode archive checkpoint pytorch tensors multipart)
command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
rustup toolchain list | grep -q nightly || rustup toolchain install nightly --profile minimal

# Seeds: the drawn images of the tests, the bundled model, and requests of a few lines.
seeds=fuzz/corpus
mkdir -p "$seeds"/{decode,archive,checkpoint,pytorch,tensors,multipart}
cp petnet/tests/golden/waves*.{png,jpg} "$seeds/decode/" 2>/dev/null || true
python3 -c "import tarfile, zipfile
zipfile.ZipFile('$seeds/archive/zip', 'w', zipfile.ZIP_DEFLATED).writestr('cat/1.jpg', b'bytes' * 9)
tarfile.open('$seeds/archive/tar', 'w', format=tarfile.USTAR_FORMAT).add('scripts/fuzz.sh', 'cat/2.jpg')"
head -c 200000 petnet/models/cats-vs-dogs.safetensors >"$seeds/checkpoint/cut"
cp petnet/models/cats-vs-dogs.safetensors "$seeds/checkpoint/whole"
find petnet/tests -name '*.pt' -o -name '*.pth' | while read -r file; do cp "$file" "$seeds/pytorch/"; done
printf '\0\0{"inputs":[{"name":"image","shape":[1],"datatype":"BYTES","data":["AAAA"]}]}' >"$seeds/tensors/json"
printf '\1\0{"inputs":[{"name":"image","shape":[1,2],"datatype":"FP32","parameters":{"binary_data_size":8}}]}\0\0\0\0\0\0\0\0' >"$seeds/tensors/raw"
printf -- '--X\r\ncontent-disposition: form-data; name="file"; filename="a.jpg"\r\n\r\nbytes\r\n--X--\r\n' >"$seeds/multipart/form"
printf '{"image":"data:image/png;base64,AA_-"}' >"$seeds/multipart/json"

for target in "${targets[@]}"; do
    echo "== $target, $seconds s"
    cargo +nightly fuzz run "$target" -- -max_total_time="$seconds" -rss_limit_mb=2048 -timeout=10 -max_len=1000000 -print_final_stats=1 2>&1 |
        grep -E 'stat::|SUMMARY|panicked|ERROR|Test unit' || true
    [ -z "$(ls -A "fuzz/artifacts/$target" 2>/dev/null)" ] || { echo "findings in fuzz/artifacts/$target"; exit 1; }
done
