#!/bin/sh
# Runs every fuzz target of the tree for the given time (default 2s), one after the other; a package is built once.
# New inputs stay in Go's cache; a failing one is written to testdata/fuzz.
set -eu
cd "$(dirname "$0")/.."
time=${1:-2s}
module=$(go list -m) cache=$(go env GOCACHE)/fuzz
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT

# run DIR NAME: one target, in its package's folder, as go test would run it.
run() (
	cd "$1"
	"$bin/test" -test.run='^$' -test.fuzz="^$2\$" -test.fuzztime="$time" -test.fuzzcachedir="$cache/$module/${1#./}" 2>&1
)

# noise OUTPUT: Go's engine sometimes reports the end of its own time as a failure, without any failing input.
noise() {
	case $1 in
	*"Failing input written"* | *"panic:"*) return 1 ;;
	*"context deadline exceeded"*) return 0 ;;
	*) return 1 ;;
	esac
}

n=0 built=
list=$(grep -rn --include='*_test.go' -o '^func Fuzz[A-Za-z0-9_]*' . | sort)
for line in $(echo "$list" | sed 's/:[0-9]*:func /:/'); do
	dir=$(dirname "${line%%:*}") name=${line##*:}
	if [ "$dir" != "$built" ]; then
		go test -c -fuzz=Fuzz -o "$bin/test" "$dir"
		built=$dir
	fi
	printf 'fuzz %-50s ' "${dir#./} $name"
	if ! out=$(run "$dir" "$name"); then
		if ! noise "$out" || ! out=$(run "$dir" "$name"); then
			echo FAIL
			echo "$out"
			exit 1
		fi
	fi
	tried=$(echo "$out" | sed -n 's/.*execs: \([0-9]*\).*/\1 inputs/p' | tail -1)
	echo "ok  ${tried:-nothing new was tried in that time}"
	n=$((n + 1))
done
echo "$n fuzz targets, $time each, no failure"
