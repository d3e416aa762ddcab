#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Build a real part of the bundle from Go modules into the user's cache, unless it is there already.
#
#   build.sh [PART]                      build it, and print the path of the binary
#   build.sh [PART] --path               print the path; the file is missing if nobody has built it
#   build.sh collector --new-sums        after a change of builder.yaml; read the difference of builder/
#
# PART is one of collector (the default), jaeger, prometheus, alertmanager, and for tests pint and sloth; beside prometheus
# stands promtool, beside alertmanager amtool. Needs Go 1.24.6 or newer (1.26 for Prometheus, pint and sloth) and a Go
# module proxy; takes a few minutes the first time. The folders of the same names hold the checksums of every module, so that each build gets the same bytes. The
# checksum database lacks some of these modules, among them the Collector's own; their sums were taken once, from the proxy.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=collector/versions.env
source "$here/versions.env"

part=collector
case "${1:-}" in
collector | jaeger | prometheus | alertmanager | pint | sloth) part=$1 && shift ;;
'' | --path | --new-sums) ;;
*)
    echo "build.sh: no part is called $1; there are collector, jaeger, prometheus, alertmanager, pint, sloth" >&2
    exit 2
    ;;
esac
case "$part ${1:-}" in
"$part " | "$part --path" | 'collector --new-sums') ;;
*)
    echo "build.sh: $part takes --path, and collector --new-sums; $1 is neither" >&2
    exit 2
    ;;
esac
# What it is made from is part of the name: two checkouts do not build over each other.
name=$part made_from=("$here/$part/go.mod")
case $part in
collector) version=$COLLECTOR_VERSION made_from=("$here/builder.yaml") name=otelcol ;;
jaeger) version=$JAEGER_VERSION ;;
prometheus) version=$PROMETHEUS_VERSION ;;
alertmanager) version=$ALERTMANAGER_VERSION ;;
pint) version=$PINT_VERSION ;;
sloth) version=$SLOTH_VERSION ;;
esac
hash="$(cat "${made_from[@]}" | sha256sum | cut -c 1-12)"
cache="${XDG_CACHE_HOME:-$HOME/.cache}/jeeves-otel/$part-$version-$hash"
binary="$cache/$name"

if [[ "${1:-}" == --path ]] || [[ "${1:-}" != --new-sums && -x "$binary" ]]; then
    echo "$binary"
    exit 0
fi
if ! command -v go >/dev/null; then
    echo "build.sh: Go is not installed; get Go 1.26 or newer, or run the images that compose.yaml names" >&2
    exit 1
fi

build_collector() {
    # Built outside the build folder, whose go.mod is the Collector's own.
    go build -C "$here/builder" -o "$cache/ocb" go.opentelemetry.io/collector/cmd/builder
    if [[ "${1:-}" == --new-sums ]]; then
        export GONOSUMDB='go.opentelemetry.io/*,github.com/open-telemetry/*'
    else
        cp "$here/builder/otelcol.sum" build/go.sum
    fi
    nice "$cache/ocb" --config "$here/builder.yaml" --ldflags "-s -w" >&2
    [[ "${1:-}" == --new-sums ]] && cp build/go.sum "$here/builder/otelcol.sum"
    mv build/otelcol "$binary"
}

# from_modules TAGS PACKAGE...: what the part's own go.mod names.
from_modules() {
    local tags=$1 package
    shift
    for package in "$@"; do
        nice go build -C "$here/$part" -mod=readonly -tags "$tags" -ldflags "-s -w" -o "$cache/build/" "$package"
    done
    # The part itself comes last: a build that broke off has no binary where the next one looks.
    find build -type f ! -name "$name" -exec mv -t . {} +
    mv "build/$name" "$binary"
}

build_jaeger() { from_modules '' github.com/jaegertracing/jaeger/cmd/jaeger; }

build_prometheus() {
    # Discovery of clouds is left out, which a sidecar's Prometheus does not need, and half of the build.
    from_modules netgo,remove_all_sd github.com/prometheus/prometheus/cmd/{prometheus,promtool}
}

build_alertmanager() { from_modules '' github.com/prometheus/alertmanager/cmd/{alertmanager,amtool}; }

build_pint() { from_modules '' github.com/cloudflare/pint/cmd/pint; }

build_sloth() { from_modules '' github.com/slok/sloth/cmd/sloth; }

mkdir -p "$cache"
cd "$cache"
rm -rf build # a build that broke off begins again
mkdir build
# nice: a build must not take the machine. -s -w: without symbol tables a binary has half the size.
echo "building $part $version into $cache (a few minutes)" >&2
"build_$part" "$@"
rm -rf build ocb
echo "$binary"
