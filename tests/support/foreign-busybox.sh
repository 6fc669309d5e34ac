#!/usr/bin/env bash
# foreign-busybox.sh DIR ARCH [CODENAME]: the static busybox of another architecture, out of Debian's package.
#
# Prints its path; it is fetched once. The machine's own package lists and architectures are left as they are.
set -euo pipefail

dir=$1
arch=$2
codename=${3:-bookworm}
mkdir -p "$dir"
out=$dir/busybox-$codename-$arch
exec 9>"$dir/.$arch.lock"
flock 9
if [ -s "$out" ]; then
    printf '%s\n' "$out"
    exit 0
fi

main=$(apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(REPO_URI)|$(COMPONENT)' 'Created-By: Packages' 2>/dev/null |
    awk -F'|' '$1 == "Debian" && $2 == "Debian" && $4 == "main" {print $3; exit}' || true)
work=$(mktemp -d)
trap 'rm -rf "$work" "$out.part"' EXIT
mkdir -p "$work/lists/partial" "$work/archives/partial" "$work/parts"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${main:-http://deb.debian.org/debian/} $codename main" \
    >"$work/sources.list"
options=(
    -o "Dir::State=$work" -o "Dir::State::lists=$work/lists" -o "Dir::State::status=/dev/null" -o "Dir::Cache=$work"
    -o "Dir::Etc::sourcelist=$work/sources.list" -o "Dir::Etc::sourceparts=$work/parts"
    -o "APT::Architecture=$arch" -o "APT::Architectures=$arch"
    -o Acquire::Languages=none -o Acquire::Retries=3 -o APT::Sandbox::User=root
)
echo "foreign-busybox.sh: $arch of $codename (once)" >&2
apt-get "${options[@]}" -qq update >&2
(cd "$work" && apt-get "${options[@]}" -qq download "busybox-static:$arch" >&2)
dpkg-deb --fsys-tarfile "$work"/busybox-static_*.deb | tar -xO ./bin/busybox >"$out.part"
chmod 755 "$out.part"
mv "$out.part" "$out"
printf '%s\n' "$out"
