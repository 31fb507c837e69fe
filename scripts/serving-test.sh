#!/usr/bin/env bash
# The guarantees of docs/serving.md, checked with curl: several models, a shadow, keys with limits and priority, repeated images,
# images by URL. Needs curl and python3.
# Usage: scripts/serving-test.sh [IMAGE]
set -euo pipefail
cd "$(dirname "$0")/.."
photo=${1:-examples/pictures/cat.jpg}
cargo build --release --bin petnet-serve
work=$(mktemp -d)
mkdir "$work/images"
cp "$photo" "$work/images/rex.jpg"
python3 -u -m http.server 18961 --bind 127.0.0.1 --directory "$work/images" >/dev/null 2>&1 &
host=$!
cat >"$work/keys.yaml" <<KEYS
- {name: shop, sha256: $(printf %s shop | sha256sum | cut -d' ' -f1), requests_per_second: 1000}
- {name: nightly, sha256: $(printf %s nightly | sha256sum | cut -d' ' -f1), requests_per_day: 2, priority: batch}
- {name: operator, sha256: $(printf %s operator | sha256sum | cut -d' ' -f1), scopes: [admin, metrics]}
KEYS
"${CARGO_TARGET_DIR:-target}/release/petnet-serve" --host 127.0.0.1 --port 18960 --metrics-addr off --log warn \
    --feedback "$work/feedback" --api-keys "$work/keys.yaml" --cache 16 --image-hosts http://127.0.0.1:18961 \
    --model pretrained --model other=petnet/models/cats-vs-dogs.safetensors --shadow other --shadow-share 1 &
server=$!
trap 'kill $server $host; rm -rf "$work"' EXIT
base=127.0.0.1:18960
for _ in $(seq 100); do curl -sf $base/readyz >/dev/null && break; sleep 0.1; done

# ask KEY CURL'S ARGUMENTS: the answer's body and, on a line of its own, its status.
ask() { curl -s -m 20 -w '\n%{http_code}\n' -H "X-API-Key: $1" "${@:2}"; }
# expect NAME PATTERN TEXT
expect() { if grep -qE "$2" <<<"$3"; then echo "ok    $1"; else printf 'FAIL  %s\n%s\n' "$1" "$3"; exit 1; fi; }

expect "the first model answers" '"name":"cats-vs-dogs"' "$(ask shop -F "file=@$photo" $base/predict)"
expect "?model= chooses" '"name":"other"' "$(ask shop -F "file=@$photo" "$base/predict?model=other")"
expect "the field model chooses" '"name":"other"' "$(ask shop -F "file=@$photo" -F model=other $base/predict)"
expect "an unknown model is refused" '^404$' "$(ask shop -F "file=@$photo" "$base/predict?model=none")"
expect "no key" '^401$' "$(ask nobody -F "file=@$photo" $base/predict)"
expect "no scope" '^403$' "$(ask shop $base/shadow)"
for _ in 1 2; do expect "a batch caller is served" '^200$' "$(ask nightly -F "file=@$photo" $base/predict)"; done
expect "its day is used up" '^429$' "$(ask nightly -F "file=@$photo" $base/predict)"
expect "an image by its URL" '^200$' "$(ask shop --json '{"url": "http://127.0.0.1:18961/rex.jpg"}' $base/predict)"
for url in http://localhost:18961/rex.jpg http://169.254.169.254/ file:///etc/passwd http://127.0.0.1:18960/metrics; do
    expect "$url is refused" '^400$' "$(ask shop --json "{\"url\": \"$url\"}" $base/predict)"
done
for _ in $(seq 50); do
    shadow=$(ask operator $base/shadow)
    grep -q '"photos":4' <<<"$shadow" && break
    sleep 0.1
done
expect "the shadow saw the first model's four images" '"photos":4.*' "$shadow"
expect "and agrees with itself" '"agreement":1.0' "$shadow"
metrics=$(ask operator $base/metrics)
expect "repeated images were known" 'prediction_cache_requests_total\{result="hit"\} [1-9]' "$metrics"
expect "each model has its label" 'api_predictions_total\{class="cat",model="other"\} 2' "$metrics"
expect "one model is loaded anew" '"name":"other"' "$(ask operator -X POST "$base/admin/reload?model=other")"
