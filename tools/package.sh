#!/bin/sh
# Builds the deb and the rpm for amd64 and arm64 into bin/packages: make package
set -eu
cd "$(dirname "$0")/.."
version=${1:-$(git describe --tags --always --dirty 2>/dev/null || echo 0)}
version=${version#v}
case $version in [0-9]*.[0-9]*) ;; *) version=0.0.0-$version ;; esac # nfpm wants a semantic version
out=bin/packages
rm -rf "$out" && mkdir -p "$out"
go build -modfile=tools/nfpm/go.mod -o bin/nfpm github.com/goreleaser/nfpm/v2/cmd/nfpm

stage=bin/stage # deploy/package/nfpm.yaml names it
rm -rf "$stage" && mkdir -p "$stage/man"
go build -o "$stage/host" -ldflags "-X main.version=$version" ./cmd/edged
"$stage/host" man "$stage/man"
gzip -9n "$stage"/man/* && mv "$stage/man/edged.yaml.5.gz" "$stage/"
"$stage/host" completion bash >"$stage/edged.bash"
"$stage/host" completion zsh >"$stage/_edged"
"$stage/host" completion fish >"$stage/edged.fish"
{
	echo "Files: *"
	echo "Copyright: $(git log --reverse --format=%ad --date=format:%Y 2>/dev/null | head -1) the authors of edged"
	echo "License: Apache-2.0"
	echo " On Debian systems the full text is in /usr/share/common-licenses/Apache-2.0."
} >"$stage/copyright"
{
	printf 'edged (%s) unstable; urgency=medium\n\n  * See /usr/share/doc/edged/CHANGELOG.md.\n\n' "$(echo "$version" | sed 's/-/~/')"
	printf ' -- edged <packages@edged.dev>  %s\n' "$(git log -1 --format=%aD 2>/dev/null || date -R)"
} | gzip -9n >"$stage/changelog.gz"
echo "edged: statically-linked-binary [usr/bin/edged]" >"$stage/overrides" # Go: one binary for every distribution
export VERSION="$version" ARCH
for ARCH in amd64 arm64; do
	echo "package: edged $version for $ARCH"
	CGO_ENABLED=0 GOARCH=$ARCH go build -trimpath -ldflags "-s -w -X main.version=$version" -o "$stage/edged" ./cmd/edged
	for kind in deb rpm; do
		bin/nfpm package --config deploy/package/nfpm.yaml --packager "$kind" --target "$out"
	done
done
ls -l "$out"
