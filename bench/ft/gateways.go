package main

import (
	"fmt"
	"path/filepath"

	"edged.dev/edged/bench/veth"
)

const (
	// clientPort is where the file's sender listens, gatePort where HAProxy does for it.
	clientPort, gatePort = 6895, 6891
	sipPort              = 5060
)

// Names of what is measured.
const (
	edged      = "edged"
	edgedCheck = "edged, content checked"
	haproxy    = "HAProxy, splice"
	haproxyCpy = "HAProxy, no splice"
)

// gateway is a way through the gateway.
type gateway struct {
	name string
	// start returns what ends it.
	start func() (stop func(), err error)
	// invite returns where bob is to dial for the next transfer, and what ends the invitation.
	invite func(c *clients) (address string, done func(), err error)
}

func (r *rig) gateways(binary string) []gateway {
	fixed := func(*clients) (string, func(), error) {
		return fmt.Sprintf("%s:%d", veth.FarIP, gatePort), func() {}, nil
	}
	return []gateway{
		{edged, func() (func(), error) { return r.startEdged(binary, "") }, r.inviteBySIP},
		{edgedCheck, func() (func(), error) { return r.startEdged(binary, ", content: {verify: true, types: [executable]}") }, r.inviteBySIP},
		{haproxy, func() (func(), error) { return r.startHAProxy("option splice-auto") }, fixed},
		{haproxyCpy, func() (func(), error) { return r.startHAProxy("") }, fixed},
	}
}

func (r *rig) startHAProxy(option string) (func(), error) {
	config := fmt.Sprintf("global\n nbthread 1\n maxconn 1000\ndefaults\n mode tcp\n %s\n timeout connect 5s\n timeout client 1m\n timeout server 1m\n"+
		"listen file\n bind %s:%d\n server s %s:%d\n", option, veth.FarIP, gatePort, veth.ClientIP, clientPort)
	file, err := r.File("haproxy.cfg", config)
	if err != nil {
		return nil, err
	}
	return r.Process("haproxy", "-q", "-db", "-f", file)
}

func (r *rig) startEdged(binary, options string) (func(), error) {
	config := fmt.Sprintf(`log: {level: error}
admin: {listen: "unix:%s"}
state: {dir: ""}
media: {datapath: user, pin: ""}
networks:
  near: {addresses: [%s], subnets: [192.0.2.0/24], trusted: true}
  far: {addresses: [%s], trusted: false}
sip:
  listen: ["tcp://near:%d", "tcp://far:%d"]
  domains:
    example.org: {network: far, server: "tcp:%s:%d"}
    example.net: {network: near, server: "tcp:%s:%d"}
tftp: {ports: 6891-6901%s}
`, filepath.Join(r.Dir, "admin.sock"), veth.NearIP, veth.FarIP, sipPort, sipPort, veth.ServerIP, sipPort, veth.ClientIP, sipPort, options)
	file, err := r.File("edged.yaml", config)
	if err != nil {
		return nil, err
	}
	return r.Process(binary, "run", "--drain", "0s", "--config", file)
}
