#!/usr/bin/env bash
# Downloads the viewer of /docs, swagger-ui-dist, in exactly the version below, verifies its integrity hash
# and writes the files to petnet-serve/assets/vendor. For a newer version, change both values. Needs npm, openssl and gzip.
# Usage: scripts/vendor-docs.sh
set -euo pipefail
cd "$(dirname "$0")/.."
version=5.35.0
integrity=sha512-U06rpMtW9V3XPGOBeamTUSr0Z09jMX4IJuANpE/EZbAhw0G8CgwrzU4YmXkn/h0wCDNsXdGarTNNHC3sU8yVUQ==
folder=petnet-serve/assets/vendor
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
archive=$work/$(npm pack --silent --pack-destination "$work" "swagger-ui-dist@$version")
found=sha512-$(openssl dgst -sha512 -binary "$archive" | base64 -w 0)
[ "$found" = "$integrity" ] || {
    echo "error: swagger-ui-dist $version has the hash $found, not $integrity" >&2
    exit 1
}
tar -xzf "$archive" -C "$work"
mkdir -p "$folder"
for file in swagger-ui-bundle.js swagger-ui.css; do
    gzip -9 --no-name --stdout "$work/package/$file" > "$folder/$file.gz"
done
cp "$work/package/LICENSE" "$folder/LICENSE"
{
    cat "$work/package/NOTICE"
    printf '\n\nLicences of the libraries in swagger-ui-bundle.js:\n\n'
    cat "$work/package/swagger-ui-bundle.js.LICENSE.txt"
} > "$folder/NOTICE"
cat > "$folder/README.md" <<EOF
swagger-ui-dist $version, the viewer of \`/docs\`: \`swagger-ui-bundle.js\` and \`swagger-ui.css\`, compressed with gzip, otherwise
unchanged. Licence: Apache-2.0, see LICENSE and NOTICE. Written by \`scripts/vendor-docs.sh\`.

Integrity of the npm package: $integrity
EOF
chmod 644 "$folder"/*
ls -l "$folder"
