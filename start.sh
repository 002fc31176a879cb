#!/usr/bin/env bash
# The only set-up command: finds or installs PostgreSQL, builds SynapseDB if need be, and runs a cluster of three nodes.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
YES=''
# shellcheck source=scripts/prepare.sh
. "$ROOT/scripts/prepare.sh"

usage() {
    cat <<'TEXT'
Usage: ./start.sh [--yes] [--foreground] [options of "synapsedb up"]

  --yes          install missing packages without asking
  --foreground   stay, and stop the cluster on Ctrl-C
  -h, --help     this text

Options of "synapsedb up" are passed on, such as --nodes 3, --data DIR, --port-base PORT,
--split-port PORT.
Afterwards: bin/synapsedb status | psql | logs | down
TEXT
}

# Builds the release binary unless it is newer than the sources, and links it as bin/synapsedb.
build() {
    local binary
    binary=$(target_folder)/release/synapsedb
    if is_stale "$binary"; then
        prepare_build
        say "building the release binary into $(target_folder) (the first time takes minutes)"
        (cd "$ROOT" && cargo build --release --locked --package synapsedb) ||
            die 'the build failed; see the messages of cargo above'
        # Cargo leaves a binary as it is when the newer sources change nothing in it.
        touch "$binary"
    fi
    mkdir -p "$ROOT/bin"
    ln -sfn "$binary" "$ROOT/bin/synapsedb"
}

main() {
    local mode=(--detach) arguments=()
    while [ $# -gt 0 ]; do
        case $1 in
        --yes | -y) YES=yes ;;
        --foreground) mode=() ;;
        -h | --help)
            usage
            exit 0
            ;;
        *) arguments+=("$1") ;;
        esac
        shift
    done
    # Rust is the one thing that is not installed for you: said before anything is changed.
    ! is_stale "$(target_folder)/release/synapsedb" || prepare_rust
    # shellcheck disable=SC2119
    prepare_postgres
    build
    cd "$ROOT"
    exec bin/synapsedb up "${mode[@]}" "${arguments[@]}"
}

main "$@"
