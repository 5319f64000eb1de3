#!/bin/sh
# deb: configure [OLD]; rpm: 1 = first install, 2 = upgrade.
set -e
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	systemctl try-restart edged.service
fi
if [ "$1" = 1 ] || { [ "$1" = configure ] && [ -z "$2" ]; }; then
	echo "edged: edit the three marked lines of /etc/edged/edged.yaml, then: edged check && systemctl enable --now edged"
fi
