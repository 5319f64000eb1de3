#!/bin/sh
# Says what to do where Go is missing or too old for go.mod.
set -eu
cd "$(dirname "$0")/.."
want=$(sed -n 's/^go //p' go.mod)
if ! command -v go >/dev/null; then
	echo "edged needs Go $want or newer, and there is no go in PATH." >&2
	echo "Get it from https://go.dev/dl/ and put its bin folder into PATH, for example:" >&2
	echo "  rm -rf /usr/local/go && tar -C /usr/local -xzf go$want.linux-amd64.tar.gz && export PATH=\$PATH:/usr/local/go/bin" >&2
	exit 1
fi
if ! err=$(go list -m 2>&1 >/dev/null); then
	echo "$err" >&2
	echo "edged needs Go $want or newer; $(go env GOVERSION 2>/dev/null || echo this one) is too old." >&2
	echo "Get it from https://go.dev/dl/, or let this one fetch it: GOTOOLCHAIN=auto make" >&2
	exit 1
fi
