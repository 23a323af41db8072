#!/usr/bin/env bash
# Brings up the servers that the tests need, runs every test on them, and takes
# the servers down again. A server that cannot be had is a failure.
set -euo pipefail
cd "$(dirname "$0")/../.."
bed="${MILLRACE_TESTBED:-.cache/testbed}"
mkdir -p "$bed"
bed="$(cd "$bed" && pwd)"
trap 'deploy/testbed/testbed.sh down "$bed"' EXIT
deploy/testbed/testbed.sh up "$bed"
# shellcheck disable=SC1091
. "$bed/env"
export REQUIRE_SERVERS=1
go vet ./...
make build
go test -race -count=1 -timeout 25m "$@" ./...
