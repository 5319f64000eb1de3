#!/bin/sh
# Runs every fuzz target of the tree for the given time (default 5s), one after
# the other. New inputs stay in Go's cache; a failing one is written to testdata/fuzz.
set -eu
cd "$(dirname "$0")/.."
time=${1:-5s}
n=0
list=$(grep -rn --include='*_test.go' -o '^func Fuzz[A-Za-z0-9_]*' . | sort)
for line in $(echo "$list" | sed 's/:[0-9]*:func /:/'); do
	dir=$(dirname "${line%%:*}") name=${line##*:}
	printf 'fuzz %-50s ' "${dir#./} $name"
	if ! out=$(go test -run='^$' -fuzz="^$name\$" -fuzztime="$time" "$dir" 2>&1); then
		# Go's engine sometimes reports the end of its own time as a failure, without any failing input.
		case $out in
		*"Failing input written"* | *"panic:"*) engine= ;;
		*"context deadline exceeded"*) engine=1 ;;
		*) engine= ;;
		esac
		if [ -z "$engine" ] || ! out=$(go test -run='^$' -fuzz="^$name\$" -fuzztime="$time" "$dir" 2>&1); then
			echo FAIL
			echo "$out"
			exit 1
		fi
	fi
	echo "ok  $(echo "$out" | sed -n 's/.*execs: \([0-9]*\).*/\1 inputs/p' | tail -1)"
	n=$((n + 1))
done
echo "$n fuzz targets, $time each, no failure"
