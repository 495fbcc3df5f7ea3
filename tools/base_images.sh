#!/bin/sh
# Create substitutes for the base images from Debian packages, for machines without access to an image registry.
# Requires root and the packages podman, runc, catatonit, netavark, aardvark-dns, fuse-overlayfs and debootstrap.
#
#     sh tools/base_images.sh            takes two minutes; skips images that already exist
#
# The images are localhost/llava-serve/python:SUITE and localhost/llava-serve/valkey:trixie. SUITE is the Debian release
# whose Python version is needed, by default trixie (Python 3.13), or bookworm (Python 3.11). The images are intended
# only for tests.
set -eu
suite=${SUITE:-trixie}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM

debian() { # create localhost/llava-serve/debian:$1
  podman image exists "localhost/llava-serve/debian:$1" && return
  mirror=$(sed -n 's/^URIs: *//p; s/^deb  *\(http[^ ]*\).*/\1/p' /etc/apt/sources.list.d/*.sources /etc/apt/sources.list 2>/dev/null |
    grep -v security | head -1)
  debootstrap --variant=minbase --include=ca-certificates "$1" "$work/$1" "${mirror:-http://deb.debian.org/debian}" >"$work/log" ||
    { tail "$work/log" >&2; exit 1; }
  # Like Debian's slim images: without documentation, and without caches of apt.
  printf 'Dir::Cache::pkgcache "";\nDir::Cache::srcpkgcache "";\n' >"$work/$1/etc/apt/apt.conf.d/docker-clean"
  for folder in var/cache/apt var/lib/apt/lists usr/share/doc usr/share/man usr/share/locale usr/share/info; do
    find "$work/$1/$folder" -mindepth 1 -delete 2>/dev/null || true
  done
  tar -C "$work/$1" -c . | podman import --quiet - "localhost/llava-serve/debian:$1"
}

build() { # build the image localhost/llava-serve/$1 from the Dockerfile on stdin
  podman image exists "localhost/llava-serve/$1" && return
  podman build --quiet --ulimit nofile=1024:1024 --network=host --tag "localhost/llava-serve/$1" --file - "$work"
}

# python and pip have the same names as in the original image, and the user who owns Valkey's data the same ID.
debian "$suite"
build "python:$suite" <<DOCKERFILE
FROM localhost/llava-serve/debian:$suite
RUN apt-get update \\
 && apt-get install -y --no-install-recommends python3 python3-pip python3-venv \\
 && rm -rf /var/lib/apt/lists/* /usr/share/doc/* /usr/lib/python3*/EXTERNALLY-MANAGED \\
 && ln -s /usr/bin/python3 /usr/local/bin/python
DOCKERFILE

debian trixie
build valkey:trixie <<DOCKERFILE
FROM localhost/llava-serve/debian:trixie
RUN groupadd --gid 1000 valkey && useradd --uid 999 --gid valkey valkey \\
 && apt-get update && apt-get install -y --no-install-recommends valkey-server valkey-tools \\
 && rm -rf /var/lib/apt/lists/* \\
 && install -d -o 999 -g 1000 /data
WORKDIR /data
VOLUME /data
DOCKERFILE
