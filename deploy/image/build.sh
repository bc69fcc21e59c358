#!/bin/sh
# Builds an image out of a folder that is its whole root filesystem, tags it in the local store, and writes it as an
# archive that `docker load`, `ctr images import` and `somersault-cluster load` read.
#
#   build.sh NAME DOCKERFILE CONTEXT ARCHIVE
#
# With buildah, podman or docker, whichever is there and works. Every time is 0, so that the same files make the same
# image: the same digest with the same tool. (Tools write different metadata, so each has its own digest.)
set -eu
name=$1 dockerfile=$2 context=$3 archive=$4
rm -f "$archive"

if command -v buildah > /dev/null; then
  # Where the kernel has no overlay for us (a container in a container), plain copies do.
  buildah info > /dev/null 2>&1 || export STORAGE_DRIVER=vfs
  buildah bud --quiet --isolation chroot --format oci --identity-label=false --timestamp 0 --tag "$name" --file "$dockerfile" "$context" > "$archive.id"
  buildah push --quiet "$name" "docker-archive:$archive:$name"
  tool=buildah
elif command -v podman > /dev/null; then
  podman build --quiet --isolation chroot --format oci --identity-label=false --timestamp 0 --tag "$name" --file "$dockerfile" "$context" > "$archive.id"
  podman save --quiet --format docker-archive --output "$archive" "$name"
  tool=podman
elif docker info > /dev/null 2>&1; then
  # Not every driver and store of docker can export an archive.
  if docker buildx version > /dev/null 2>&1 &&
    SOURCE_DATE_EPOCH=0 docker buildx build --quiet --provenance=false --tag "$name" --file "$dockerfile" \
      --output "type=docker,dest=$archive,rewrite-timestamp=true" "$context" > /dev/null; then
    docker load --quiet --input "$archive" > /dev/null
    docker image inspect --format '{{.Id}}' "$name" > "$archive.id"
  else
    echo "== docker has no buildx that can write an archive: its digest differs each time, since the build writes the time into it"
    docker build --quiet --tag "$name" --file "$dockerfile" "$context" > "$archive.id"
    docker save --output "$archive" "$name"
  fi
  tool=docker
else
  echo "no tool to build images: install buildah, podman or docker" >&2
  exit 1
fi
id=$(sed 's/^sha256://' "$archive.id")
rm "$archive.id"
echo "== $name: $(du --apparent-size -h "$archive" | cut -f1) in $archive, built by $tool, sha256:$id"
