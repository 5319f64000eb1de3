#!/bin/sh
# Builds the container image edged:latest from bin/edged with docker or buildah, whichever is here; no network needed.
# IMAGE_ROOT=DIR: the folder of buildah's storage, else its own.
set -eu
cd "$(dirname "$0")/.."
context=bin/image
rm -rf "$context" && mkdir -p "$context/state"
cp bin/edged "$context/edged"
for f in /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt; do
	[ ! -e "$f" ] || cp "$f" "$context/ca-certificates.crt"
done
[ -e "$context/ca-certificates.crt" ] || { echo "image: no certificates of authorities on this machine: install ca-certificates" >&2; exit 1; }
if command -v buildah >/dev/null; then
	# chroot isolation: works without an engine and inside a container
	exec buildah ${IMAGE_ROOT:+--root "$IMAGE_ROOT" --storage-driver vfs} bud --isolation chroot --format docker \
		-f deploy/docker/Dockerfile.binary -t edged:latest "$context"
fi
exec docker build -f deploy/docker/Dockerfile.binary -t edged:latest "$context"
