//go:build lab

// Package lab makes real calls between real programs over real network stacks: sipp,
// baresip and Kamailio in network namespaces on both sides of a gateway that routes
// nothing (ip_forward=0), so that only edged can carry a call across.
//
//	inside hosts ── lan │ gateway: edged │ wan ── outside hosts ── NAT ── hosts behind it
//	 10.77.1.0/24       tcpdump on both          198.51.100.0/24     192.0.2.0/24
//	 fd77:1::/64        interfaces               2001:db8:77::/64
//
// It needs root, Linux and the Debian packages of packages.txt; see README.md. It is
// not a benchmark (that is bench/) and holds no unit tests of the product. Every case
// bounds each wait, polls for conditions instead of sleeping, stops its processes by
// their own pid and deletes its namespaces.
package lab
