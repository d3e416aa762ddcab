#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Build the Collector of builder.yaml from Go modules into the user's cache, unless it is there already.
# Needs Go 1.24 or newer and a Go module proxy; takes a few minutes the first time. Prints the path of the binary.
# `collector/build.sh --path` prints it without building; it is missing then if nobody has built it.
#
# builder/go.sum and builder/otelcol.sum hold the checksums of every module, so that each build gets the same bytes.
# After a change of builder.yaml run `collector/build.sh --new-sums` and read the difference: it asks the checksum
# database again, except for the Collector's own modules, whose builder that database does not list.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=collector/versions.env
source "$here/versions.env"
version=$COLLECTOR_VERSION
# Another list of components is another Collector, and has a folder of its own: two checkouts do not build over each other.
manifest="$(sha256sum "$here/builder.yaml" | cut -c 1-12)"
cache="${XDG_CACHE_HOME:-$HOME/.cache}/jeeves-otel/collector-$version-$manifest"
binary="$cache/otelcol"

if [[ "${1:-}" == --path ]] || [[ "${1:-}" != --new-sums && -x "$binary" ]]; then
    echo "$binary"
    exit 0
fi
if ! command -v go >/dev/null; then
    echo "build.sh: Go is not installed; get Go 1.24 or newer, or use the image otel/opentelemetry-collector-contrib:$version" >&2
    exit 1
fi

mkdir -p "$cache"
cd "$cache"
rm -rf build # a build that broke off begins again
mkdir build
# Built outside the build folder, whose go.mod is the Collector's own.
go build -C "$here/builder" -o "$cache/ocb" go.opentelemetry.io/collector/cmd/builder
if [[ "${1:-}" == --new-sums ]]; then
    export GONOSUMDB='go.opentelemetry.io/*,github.com/open-telemetry/*'
else
    cp "$here/builder/otelcol.sum" build/go.sum
fi
echo "building the Collector $version into $cache (a few minutes)" >&2
# nice: a build must not take the machine. -s -w: without symbol tables the binary has half the size.
nice "$cache/ocb" --config "$here/builder.yaml" --ldflags "-s -w" >&2
[[ "${1:-}" == --new-sums ]] && cp build/go.sum "$here/builder/otelcol.sum"
mv build/otelcol "$binary"
rm -rf build ocb
echo "$binary"
