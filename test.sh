#!/usr/bin/env bash
# Prepares a machine and runs every check and test; ends with a line "N passed, N failed".
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# Consulted by the functions of prepare.sh: a test run asks nobody.
# shellcheck disable=SC2034
YES=yes
# shellcheck source=scripts/prepare.sh
. "$ROOT/scripts/prepare.sh"
cd "$ROOT"

# Cluster tests at a time: each runs up to three servers and three agents.
CLUSTERS=${SYNAPSEDB_TEST_CLUSTERS:-2}

log=$(mktemp -d)
trap 'rm -rf "$log"' EXIT
passed=0
failed=0

# Adds what a log says of its tests: cargo test prints a result for every binary, nextest one summary.
count() {
    local added
    added=$(awk '
        /^test result: / { for (i = 2; i <= NF; i++) { if ($i ~ /^passed/) p += $(i-1); if ($i ~ /^failed/) f += $(i-1) } }
        /^ *Summary \[/ { for (i = 2; i <= NF; i++) { if ($i ~ /^passed/) p += $(i-1); if ($i ~ /^failed/) f += $(i-1)
                                                       if ($i ~ /^timed/) f += $(i-1) } }
        END { print p + 0, f + 0 }' "$1")
    passed=$((passed + ${added% *}))
    failed=$((failed + ${added#* }))
}

# What the failed tests of a log have said, in a few words: in the log itself that stands far up, before long traces.
why() {
    grep -A 2 "' .*panicked at " "$1" | grep -v -e '^stack backtrace:' -e '^ *[0-9]*: ' -e '^--$' | cut -c 1-600 || true
}

# Runs one step: a failure without a failed test in its log, such as a build that fails, counts as one.
step() {
    local name=$1 before=$failed status=0
    shift
    say "$name"
    "$@" 2>&1 | tee "$log/step" || status=$?
    count "$log/step"
    if [ "$status" -ne 0 ]; then why "$log/step" >>"$log/why"; fi
    if [ "$status" -ne 0 ] && [ "$failed" -eq "$before" ]; then
        say "failed: $name"
        failed=$((failed + 1))
    fi
}

# Runs one check, which counts as one test.
check() {
    local name=$1
    shift
    say "$name"
    if "$@"; then passed=$((passed + 1)); else
        say "failed: $name"
        failed=$((failed + 1))
    fi
}

# The drivers of the router's tests: small, and each is left out where it cannot be installed. JDBC is used where a JDK
# is, which is not small.
prepare_drivers() {
    local packages=() package
    [ -n "$(packaged_major)" ] || return 0
    for package in python3-psycopg python3-asyncpg node-pg; do
        dpkg -s "$package" >/dev/null 2>&1 || packages+=("$package")
    done
    if command -v javac >/dev/null && [ ! -e /usr/share/java/postgresql.jar ]; then
        packages+=(libpostgresql-jdbc-java)
    fi
    if [ "$(id -u)" -ne 0 ] && ! command -v sudo >/dev/null; then return 0; fi
    for package in "${packages[@]}"; do
        apt_has "$package" || continue
        apt_install "$package" >/dev/null 2>&1 || say "$package could not be installed: its driver is not tested"
    done
}

# A cut between nodes is made with nftables, clocks that differ with libfaketime: installed where that may be done.
extra=()
if [ "$(id -u)" -eq 0 ] && [ -n "$(packaged_major)" ]; then
    command -v nft >/dev/null || extra+=(nftables)
    compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' >/dev/null || extra+=(libfaketime)
fi
prepare_postgres "${extra[@]}"
prepare_build
prepare_drivers

check 'format' cargo fmt --all --check
check 'lints' cargo clippy --quiet --workspace --all-targets --locked -- -D warnings
check 'tidy' cargo dev tidy
if cargo nextest --version >/dev/null 2>&1; then
    step 'unit tests' cargo nextest run --workspace --locked --no-fail-fast -E 'not binary(=it)'
    step 'examples in the documentation' cargo test --quiet --workspace --locked --doc
else
    step 'tests of core, pg and dev' cargo test --workspace --exclude synapsedb --locked --no-fail-fast
    step 'unit tests of the agent' cargo test --package synapsedb --locked --no-fail-fast --lib --bins
fi
# With one process for all, so that they share a cluster where they break nothing.
step 'cluster tests' cargo test --package synapsedb --locked --test it -- --test-threads="$CLUSTERS"

if [ -s "$log/why" ]; then
    say 'what the failed tests have said'
    cat "$log/why"
fi
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
