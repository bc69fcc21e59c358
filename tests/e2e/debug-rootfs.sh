#!/bin/sh
# Puts what `cargo build` has just built into a folder as an image's root filesystem, with the libraries that it is
# linked to: for tests, which need no second build of everything. What people install is `make image`.
#
#   debug-rootfs.sh FOLDER BINARY...
set -eu
root=$1
shift
rm -rf "$root"
mkdir -p "$root/usr/local/bin" "$root/usr/lib" "$root/usr/lib64"
ln -s usr/lib "$root/lib"
ln -s usr/lib64 "$root/lib64"
for binary in "$@"; do
  # Symbols are nine tenths of it, and every node unpacks the image.
  strip -o "$root/usr/local/bin/$(basename "$binary")" "$binary"
  # "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)" and "/lib64/ld-linux-x86-64.so.2 (0x…)".
  ldd "$binary" | sed -n 's/^.*\(=> \|	\)\(\/[^ ]*\) (.*$/\2/p' | while read -r library; do
    mkdir -p "$root/$(dirname "$library")"
    cp -L "$library" "$root/$library"
  done
done
cp -r "$(dirname "$0")/../../deploy/image/etc" "$root/etc"
chmod -R u=rwX,go=rX "$root"
chmod 0555 "$root"/usr/local/bin/*
