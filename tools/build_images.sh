#!/bin/sh
# Build the images of the server and the CPU worker with Podman.
#
#     sh tools/build_images.sh                                 uses the base image in docker-compose.yml
#     PYTHON_IMAGE=... WHEELS=/folder sh tools/build_images.sh
#
# WHEELS is a folder with a CPU build of torch for the Python version of the base image. It replaces the one that the
# Dockerfile downloads, for machines without access to download.pytorch.org. Its hash is not checked, so such an image
# is intended only for tests. The settings and certificates of pip on this machine are used during the build.
set -eu
cd "$(dirname "$0")/.."
image=$(sed -n 's/^  python: &python //p' docker-compose.yml)
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM

set -- --ulimit nofile=1024:1024 --network=host --build-arg "PYTHON_IMAGE=${PYTHON_IMAGE:-$image}" \
  --build-arg "VERSION=$version" --build-arg "REVISION=$(git rev-parse HEAD)" --volume /etc/ssl/certs:/etc/ssl/certs:ro
printf '[global]\ncert = %s\n' "${PIP_CERT:-/etc/ssl/certs/ca-certificates.crt}" >"$work/pip.conf"
if [ -n "${WHEELS:-}" ]; then
  cp -r deploy/requirements "$work"
  python3 - "$WHEELS" >"$work/requirements/torch-cpu.txt" <<'PYTHON'
import hashlib, pathlib, sys
for path in sorted(pathlib.Path(sys.argv[1]).glob("torch-*+cpu-*.whl")):
    print(f"torch=={path.name.split('-')[1]} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}")
PYTHON
  printf 'find-links = /wheels\nretries = 0\n' >>"$work/pip.conf"
  # Required by redis on Python 3.11.2, the version in Debian bookworm.
  for name in server worker; do
    echo 'async-timeout==5.0.1 --hash=sha256:39e3809566ff85354557ec2398b55e096c8364bacac9405a7a1fa429e77fe76c' \
      >>"$work/requirements/$name.txt"
  done
  set -- "$@" --volume "$WHEELS:/wheels:ro" --volume "$work/requirements:/src/deploy/requirements:ro"
fi
set -- "$@" --volume "$work/pip.conf:/etc/pip.conf:ro"
for name in ${TARGETS:-server worker}; do
  podman build "$@" --format docker --tag "localhost/llava-serve-$name:$version" --file "deploy/Dockerfile.$name" .
done
podman images --filter reference=localhost/llava-serve-\*
