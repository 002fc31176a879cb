# Fetches the sources of PostgreSQL $1 from Debian into the folder $2, with an apt configuration of its own, so that the
# sources of the system stay as they are. Of the suites that have it, the first that still has the file is taken.
set -eu
major=$1
folder=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/source"
mirror=${SYNAPSEDB_DEBIAN_MIRROR:-http://deb.debian.org}
key=/usr/share/keyrings/debian-archive-keyring.gpg
for suite in bookworm trixie; do
    echo "deb-src [signed-by=$key] $mirror/debian $suite main"
    echo "deb-src [signed-by=$key] $mirror/debian-security $suite-security main"
done >"$work/sources.list"
apt() {
    "$@" -o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$work/lists" \
        -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root
}
apt apt-get -q update >&2
for version in $(apt apt-cache showsrc "postgresql-$major" | awk '/^Version: / { print $2 }' | sort -Vru); do
    if (cd "$work/source" && apt apt-get -q source --download-only "postgresql-$major=$version" >&2); then
        mkdir -p "$folder"
        tar -xf "$work/source"/*.orig.tar.* -C "$folder" --strip-components=1
        exit 0
    fi
done
echo "no Debian suite has the sources of PostgreSQL $major" >&2
exit 1
