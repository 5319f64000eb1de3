#!/bin/sh
# Installs the Debian packages of lab/packages.txt that are missing, if we are root;
# otherwise says which they are. Without them the lab's cases skip and say so.
set -eu
cd "$(dirname "$0")/.."

if ! command -v dpkg-query >/dev/null; then
	echo "packages: this is no Debian or Ubuntu; the lab needs the programs of lab/packages.txt" >&2
	exit 0
fi
missing=
while read -r p; do
	[ "$(dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing="$missing $p"
done <lab/packages.txt
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ]; then
	echo "packages: not root, so these stay missing and what needs them skips:$missing" >&2
	echo "packages: to install them: sudo apt-get install -y --no-install-recommends$missing" >&2
	exit 0
fi

# kamailio and rtpengine must not start as services of this machine.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
	trap 'rm -f "$policy"' EXIT
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 755 "$policy"
fi
echo "packages: installing$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086 # a list
apt-get install -y -qq --no-install-recommends $missing >/dev/null
