#!/usr/bin/env bash
# Runs the cluster tests on another major version of PostgreSQL than this system's:
#   scripts/test-on.sh 16|17|18 [name of tests ...]
# In a container made from the packages of the distribution that has that version. Needs Docker, debootstrap and root,
# and a system no newer than that distribution.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

major=${1:-}
shift || true
scripts=/usr/share/debootstrap/scripts
case $major in
16) base=(--no-check-gpg --components=main,universe noble DIR '' "$scripts/gutsy") ;;
17) base=(trixie DIR '' "$scripts/sid") ;;
18) base=(forky DIR '' "$scripts/sid") ;;
*) die "usage: scripts/test-on.sh 16|17|18 [name of tests ...]" ;;
esac
[ "$(id -u)" -eq 0 ] || die 'debootstrap needs root'
command -v docker >/dev/null || die 'Docker is needed: apt-get install docker.io'
command -v debootstrap >/dev/null || die 'debootstrap is needed: apt-get install debootstrap'

image=synapsedb-test-postgresql-$major
if ! docker image inspect "$image" >/dev/null 2>&1; then
    echo "==> making the image $image" >&2
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    debootstrap --variant=minbase "${base[@]/DIR/$folder/root}" >&2
    tar -C "$folder/root" -c . | docker import - "$image-base" >/dev/null
    cat >"$folder/Dockerfile" <<DOCKERFILE
FROM $image-base
RUN apt-get -o Acquire::Check-Valid-Until=false update \\
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \\
    postgresql-$major postgresql-$major-pgvector nftables iproute2 procps libfaketime python3-psycopg python3-asyncpg
DOCKERFILE
    docker build -q -t "$image" -f "$folder/Dockerfile" "$folder" >/dev/null
fi

echo '==> building the tests' >&2
built=$(cargo test --package synapsedb --locked --test it --no-run 2>&1) || die "$built"
tests=$(sed -n 's/.*Executable.* (\(.*\))$/\1/p' <<<"$built")
[ -n "$tests" ] || die "cargo named no test binary: $built"
tests=$(realpath "$tests")
target=$(dirname "$(dirname "$(dirname "$tests")")")

# --init: who becomes an orphan when a test kills its parent is reaped, as on a whole system.
exec docker run --rm --init --cap-add NET_ADMIN --cap-add SYS_ADMIN --cap-add SYS_PTRACE --security-opt seccomp=unconfined \
    -v "$PWD:$PWD" -v "$target:$target" -e CARGO_TARGET_DIR="$target" -w "$PWD/crates/node" \
    "$image" "$tests" --test-threads "${CLUSTERS:-2}" "$@"
