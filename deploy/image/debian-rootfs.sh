#!/bin/sh
# Unpacks Debian packages, with everything that they need and nothing that they merely recommend, into a folder.
#
#   debian-rootfs.sh FOLDER PACKAGE...
#
# No base image and no root: apt works out and downloads the packages as if nothing were installed, and they are
# unpacked without their scripts. What the scripts would have done and is needed here is done at the end. Which
# packages, in which versions, is told by usr/share/somersault/packages.
set -eu
root=$1
shift
command -v apt-get > /dev/null && command -v dpkg-deb > /dev/null || {
  echo "this image is put together from Debian's packages: build it on Debian or Ubuntu" >&2
  exit 1
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/archives/partial"
: > "$work/status"
apt-get -qq --yes --no-install-recommends --download-only \
  -o Dir::State::status="$work/status" -o Dir::Cache::archives="$work/archives" \
  -o Debug::NoLocking=true -o APT::Sandbox::User= install "$@" > /dev/null

rm -rf "$root"
# Packages of Debian 12 still say /bin and /lib, which are links since Debian 10.
for folder in bin sbin lib lib32 lib64 libx32; do
  mkdir -p "$root/usr/$folder"
  ln -s "usr/$folder" "$root/$folder"
done
for package in "$work"/archives/*.deb; do
  dpkg-deb --fsys-tarfile "$package" | tar --extract --keep-directory-symlink --no-same-owner --directory "$root" \
    --exclude=./usr/share/man --exclude=./usr/share/locale --exclude=./usr/share/info --exclude=./usr/share/lintian \
    --exclude='./usr/share/doc/*/*[!t]' --exclude=./etc/cron.daily
done
mkdir -p "$root/etc/ssl/certs" "$root/tmp" "$root/usr/share/somersault"
chmod 1777 "$root/tmp"
for package in "$work"/archives/*.deb; do dpkg-deb --show --showformat '${Package} ${Version}\n' "$package"; done \
  | sort > "$root/usr/share/somersault/packages"

# Nobody becomes somebody else here.
find "$root" -perm /6000 -type f -exec chmod ug-s {} +

# The authorities that public services are signed by (ca-certificates' script).
if [ -d "$root/usr/share/ca-certificates" ]; then
  find "$root/usr/share/ca-certificates" -name '*.crt' | sort | xargs cat > "$root/etc/ssl/certs/ca-certificates.crt"
fi
# Python's byte code (each Python package's script), bound to the content of its source, not to its time.
if [ -e "$root/usr/bin/python3" ]; then
  unshare --map-root-user --root="$root" /usr/bin/python3 -m compileall -q --invalidation-mode unchecked-hash \
    /usr/lib/python3 /usr/lib/python3.* /usr/share/fence
fi
