# Finds or installs what SynapseDB needs: PostgreSQL with pgvector, a C compiler and libclang for the build, Rust.
# Sourced by start.sh and test.sh, which set ROOT (the source tree) and YES (non-empty: do not ask).
# shellcheck shell=bash

readonly SUPPORTED_MAJORS='18 17 16 15'
readonly RUST_HINT="curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y && . \"\$HOME/.cargo/env\""

say() { printf '==> %s\n' "$*" >&2; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# The running system as ID-VERSION, such as debian-12.
system() {
    (
        # shellcheck disable=SC1091
        . /etc/os-release 2>/dev/null || true
        printf '%s-%s' "${ID:-unknown}" "${VERSION_ID:-}"
    )
}

# The major version of PostgreSQL that the system's own packages have; nothing for a system that we do not know.
packaged_major() {
    case $(system) in
    debian-12) echo 15 ;;
    debian-13) echo 17 ;;
    ubuntu-24.04) echo 16 ;;
    esac
}

has_server() { [ -x "/usr/lib/postgresql/$1/bin/initdb" ] && [ -x "/usr/lib/postgresql/$1/bin/postgres" ]; }
has_vector() { [ -f "/usr/share/postgresql/$1/extension/vector.control" ]; }

# The installed major version to use: one with pgvector first, else the newest; nothing when there is none.
installed_major() {
    local major
    for major in $SUPPORTED_MAJORS; do
        if has_server "$major" && has_vector "$major"; then
            echo "$major"
            return
        fi
    done
    for major in $SUPPORTED_MAJORS; do
        if has_server "$major"; then
            echo "$major"
            return
        fi
    done
}

# A PostgreSQL 15 to 18 outside the places of Debian and Ubuntu, found by its pg_config.
foreign_server() {
    local folder version
    command -v pg_config >/dev/null || return 1
    folder=$(pg_config --bindir)
    version=$(pg_config --version | tr -dc '0-9.' | cut -d. -f1)
    [ -x "$folder/initdb" ] || return 1
    case " $SUPPORTED_MAJORS " in *" $version "*) return 0 ;; esac
    return 1
}

has_libclang() {
    local file
    for file in /usr/lib/llvm-*/lib/libclang*.so* /usr/lib/*/libclang*.so* /usr/lib64/libclang*.so* \
        "${LIBCLANG_PATH:-/nonexistent}"/libclang*.so*; do
        [ -e "$file" ] && return 0
    done
    return 1
}

# Asks before a change to the system, unless told not to or nobody is there to answer.
confirm() {
    local answer
    if [ -n "${YES:-}" ] || [ ! -t 0 ]; then
        return 0
    fi
    read -r -p "$1 [Y/n] " answer
    case $answer in '' | [yY]*) return 0 ;; esac
    return 1
}

# Runs a command as root: directly, or by sudo; without either, says what to run.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "this needs root and there is no sudo; run as root, then start again: $*"
    fi
}

# Ends with the exact command when packages are needed and we may not install them.
need_root_for() {
    if [ "$(id -u)" -ne 0 ] && ! command -v sudo >/dev/null; then
        die "this needs root and there is no sudo; run as root: apt-get update && apt-get install -y --no-install-recommends $*"
    fi
}

apt_install() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"
}

# Whether apt could install a package.
apt_has() { apt-cache policy "$1" 2>/dev/null | grep -q 'Candidate: [^(]'; }

# What this system needs, for those that we do not install on.
explain_needs() {
    cat >&2 <<'TEXT'
This system is not one of Debian 12, Debian 13 and Ubuntu 24.04, on which the needed packages are installed for you.
Please install:
  - PostgreSQL 15, 16, 17 or 18 (server and psql), with pg_config in the PATH
  - pgvector for it (optional: without it the extension "vector" is missing)
  - to build: Rust, a C compiler (gcc or clang), make, pkg-config and libclang
and start again.
TEXT
}

# Debian's packages make and start a server on port 5432, which is the port of our node 1. A setting for the time of
# the installation keeps them from it; servers that exist already are not touched.
install_postgres() {
    local major=$1 setting=/etc/postgresql-common/createcluster.d/synapsedb-install.conf
    shift
    as_root mkdir -p "${setting%/*}"
    echo 'create_main_cluster = false' | as_root tee "$setting" >/dev/null
    local failed=''
    apt_install "postgresql-$major" "postgresql-client-$major" "$@" || failed=yes
    as_root rm -f "$setting"
    [ -z "$failed" ] || die "apt could not install PostgreSQL $major; see its messages above"
}

# pgvector for a PostgreSQL whose system has no package of it: from Debian's own source package, fetched with a
# private apt configuration so that the system's sources stay as they are.
build_vector() {
    local major=$1 work mirror=${SYNAPSEDB_DEBIAN_MIRROR:-http://deb.debian.org/debian}
    work=$(mktemp -d)
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/source"
    echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" >"$work/sources.list"
    local options=(
        -o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=-
        -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root
    )
    # In steps joined by &&: in a condition, set -e does not apply.
    if (
        cd "$work/source" &&
            apt-get "${options[@]}" update -q >&2 &&
            apt-get "${options[@]}" source -q --download-only pgvector >&2 &&
            tar -xf pgvector_*.orig.tar.* --strip-components=1 &&
            make -s OPTFLAGS='' with_llvm=no PG_CONFIG="/usr/lib/postgresql/$major/bin/pg_config" >&2 &&
            as_root make -s install with_llvm=no PG_CONFIG="/usr/lib/postgresql/$major/bin/pg_config" >&2
    ); then
        say "pgvector is installed for PostgreSQL $major"
    else
        say "pgvector could not be built; all but the extension \"vector\" works without it"
    fi
    rm -rf "$work"
}

# Makes sure that there is a PostgreSQL with pgvector. More packages may be named, which are installed with it.
prepare_postgres() {
    local major packages=() build_vector=''
    major=$(installed_major)
    if [ -z "$major" ] && foreign_server; then
        say "using the PostgreSQL of $(pg_config --bindir)"
        return
    fi
    if [ -n "$major" ] && has_vector "$major" && [ $# -eq 0 ]; then
        say "using PostgreSQL $major with pgvector"
        return
    fi
    if [ -z "$(packaged_major)" ]; then
        [ -n "$major" ] || {
            explain_needs
            exit 1
        }
        say "using PostgreSQL $major$(has_vector "$major" || echo ', without pgvector')"
        return
    fi
    local have_server=$major
    major=${major:-$(packaged_major)}
    say 'reading the list of packages'
    if [ "$(id -u)" -eq 0 ] || command -v sudo >/dev/null; then
        as_root apt-get update -q >&2 ||
            say 'the list of packages could not be renewed; going on with the old one'
    fi
    if ! has_vector "$major"; then
        if apt_has "postgresql-$major-pgvector"; then
            packages+=("postgresql-$major-pgvector")
        else
            packages+=("postgresql-server-dev-$major" gcc libc6-dev make)
            build_vector=yes
        fi
    fi
    packages+=("$@")
    local list="${packages[*]}"
    [ -n "$have_server" ] || list="postgresql-$major postgresql-client-$major $list"
    # shellcheck disable=SC2086
    need_root_for $list
    confirm "Install with apt: $list?" || die "nothing was installed; needed: $list"
    say "installing $list"
    if [ -z "$have_server" ]; then
        install_postgres "$major" "${packages[@]}"
    else
        apt_install "${packages[@]}" || die 'apt could not install them; see its messages above'
    fi
    [ -z "$build_vector" ] || build_vector "$major"
}

# Whether version $1 is at least version $2.
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

prepare_rust() {
    local wanted found
    if ! command -v cargo >/dev/null && [ -x "$HOME/.cargo/bin/cargo" ]; then
        PATH=$HOME/.cargo/bin:$PATH
    fi
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml" | head -n 1)
    command -v cargo >/dev/null || die "Rust $wanted or newer is needed to build; to get it: $RUST_HINT"
    found=$(rustc --version | cut -d' ' -f2)
    at_least "${found%%-*}" "$wanted" ||
        die "Rust $wanted or newer is needed to build, this is $found; to get it: $RUST_HINT"
}

# Makes sure that a build can run.
prepare_build() {
    prepare_rust
    local packages=()
    command -v cc >/dev/null || packages+=(gcc libc6-dev)
    command -v make >/dev/null || packages+=(make)
    command -v pkg-config >/dev/null || packages+=(pkg-config)
    has_libclang || packages+=(libclang-dev)
    [ "${#packages[@]}" -gt 0 ] || return 0
    [ -n "$(packaged_major)" ] || {
        explain_needs
        die "missing for the build: ${packages[*]}"
    }
    need_root_for "${packages[@]}"
    confirm "Install with apt, to build: ${packages[*]}?" || die "nothing was installed; needed: ${packages[*]}"
    say "installing ${packages[*]}"
    as_root apt-get update -q >&2 || true
    apt_install "${packages[@]}" || die 'apt could not install them; see its messages above'
}

# Where cargo puts what it builds.
target_folder() { printf '%s' "${CARGO_TARGET_DIR:-$ROOT/target}"; }

# Whether $1 is missing or older than a source.
is_stale() {
    [ -x "$1" ] || return 0
    [ -n "$(find "$ROOT/Cargo.toml" "$ROOT/Cargo.lock" "$ROOT"/crates/{core,pg,node} -type f \
        ! -path '*/tests/*' -newer "$1" -print -quit)" ]
}
