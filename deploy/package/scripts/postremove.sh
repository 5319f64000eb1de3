#!/bin/sh
# deb: remove, purge; rpm: 0 = removed, 1 = upgrade.
set -e
case $1 in
purge) # /var/lib/private: DynamicUser keeps its folders there
	rm -rf /etc/edged /var/lib/edged /var/lib/private/edged /sys/fs/bpf/edged
	;;
esac
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
fi
