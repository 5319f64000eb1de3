#!/bin/sh
# deb: remove, upgrade VERSION; rpm: 0 = removed, 1 = upgrade.
set -e
case $1 in
remove | 0)
	if [ -d /run/systemd/system ]; then
		systemctl disable --now edged.socket edged.service
		# what the daemon left in the kernel, so that media survives a restart, must not survive its program
		edged fastpath detach >/dev/null 2>&1 || true
		edged firewall remove >/dev/null 2>&1 || true
	fi
	;;
esac
