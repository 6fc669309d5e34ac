#!/usr/bin/env bash
# make-base.sh DIR [CODENAME]: the root file system of a slim Debian, as a tar, made from Debian packages.
#
# Prints the path of the tar, which is made once and kept in DIR under the hash of its recipe. The mirror is the one that
# this machine's own apt uses. With DIR only, the release is bookworm, as in the examples.
set -euo pipefail

dir=$1
codename=${2:-bookworm}
arch=$(dpkg --print-architecture)
mkdir -p "$dir"

# The archive this machine is set up for. apt itself reads both forms of its sources and knows each one's origin, so that
# third-party sources are left out; without lists (a slim image) it knows nothing, and Debian's own address is taken.
targets=$(apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(REPO_URI)|$(COMPONENT)' 'Created-By: Packages' 2>/dev/null || true)
uri() { printf '%s\n' "$targets" | awk -F'|' -v label="$1" '$1 == "Debian" && $2 == label && $4 == "main" {print $3; exit}'; }
main=$(uri Debian)
security=$(uri Debian-Security)
main=${main:-http://deb.debian.org/debian/}
security=${security:-http://deb.debian.org/debian-security/}

# A proxy or a private certificate authority of this network is needed inside the image as well: apt runs there.
proxy=$(apt-config dump 2>/dev/null | grep -E '^Acquire::(http|https)::Proxy(::[^ ]*)? ' || true)
include=
case $main$security in *https://*) include=ca-certificates ;; esac

keyring=/usr/share/keyrings/debian-archive-keyring.gpg
recipe=$(printf '%s\n' "$codename $arch $main $security $proxy $include"; cat "$0")
out=$dir/debian-$codename-$arch-$(printf '%s' "$recipe" | sha256sum | cut -c1-12).tar

# Several tests may want it at once.
exec 9>"$dir/.lock"
flock 9
if [ -s "$out" ]; then
    printf '%s\n' "$out"
    exit 0
fi
command -v mmdebstrap >/dev/null || {
    echo "make-base.sh: mmdebstrap is missing: apt-get install mmdebstrap" >&2
    exit 1
}

etc=$(mktemp -d)
trap 'rm -rf "$etc" "$out.part"' EXIT
cat >"$etc/debian.sources" <<SOURCES
Types: deb
URIs: $main
Suites: $codename $codename-updates
Components: main
Signed-By: $keyring

Types: deb
URIs: $security
Suites: $codename-security
Components: main
Signed-By: $keyring
SOURCES
# What a slim image sets: nothing is kept after an install, and documentation is left out.
cat >"$etc/slim" <<'DPKG'
force-unsafe-io
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/info/*
path-exclude /usr/share/locale/*
path-include /usr/share/locale/locale.alias
path-exclude /usr/share/man/*
DPKG
cat >"$etc/slim.conf" <<'APT'
APT::AutoRemove::SuggestsImportant "false";
APT::Keep-Downloaded-Packages "false";
Acquire::GzipIndexes "true";
Acquire::Languages "none";
Binary::apt::APT::Keep-Downloaded-Packages "false";
DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/archives/partial/*.deb /var/cache/apt/*.bin || true"; };
APT
printf '%s\n' "$proxy" >>"$etc/slim.conf"

echo "make-base.sh: $codename from $main (once; a minute or so)" >&2
SOURCE_DATE_EPOCH=1700000000 mmdebstrap --quiet --variant=minbase --architectures="$arch" --format=tar \
    ${include:+--include=$include} --keyring="$keyring" \
    --dpkgopt="$etc/slim" --aptopt='Acquire::Retries "3"' --aptopt='Acquire::Languages "none"' \
    --setup-hook='mkdir -p "$1/etc/apt/apt.conf.d"' \
    --customize-hook="rm -f \"\$1/etc/apt/sources.list\" && mkdir -p \"\$1/etc/apt/sources.list.d\"" \
    --customize-hook="upload '$etc/debian.sources' /etc/apt/sources.list.d/debian.sources" \
    --customize-hook="upload '$etc/slim.conf' /etc/apt/apt.conf.d/slim" \
    --customize-hook='rm -rf "$1/var/lib/apt/lists/"* "$1/var/cache/apt/"*.bin "$1/etc/hostname" "$1/etc/resolv.conf"' \
    "$codename" "$out.part" \
    "deb $main $codename main" "deb $main $codename-updates main" "deb $security $codename-security main" >&2 </dev/null
mv "$out.part" "$out"
printf '%s\n' "$out"
