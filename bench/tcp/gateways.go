package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"edged.dev/edged/bench/veth"
)

// Ports of the server.
const (
	sinkPort = 7000 // reads and forgets
	echoPort = 7001
)

// Names of what is measured.
const (
	routing    = "plain routing"
	nat        = "nftables NAT"
	haproxy    = "HAProxy, splice"
	haproxyCpy = "HAProxy, no splice"
	nginx      = "nginx stream"
	edgedUser  = "edged, user space"
	edgedTC    = "edged, kernel"
	routingTC  = "routing beside edged"
)

const nginxStream = "/usr/lib/nginx/modules/ngx_stream_module.so"

// skipError says why something cannot be measured here.
type skipError struct{ error }

// gateway is a way through the gateway.
type gateway struct {
	name string
	// target is the address that the client connects to.
	target string
	// forwards is set where the kernel of the gateway has to route.
	forwards bool
	// start returns what ends it.
	start func() (stop func(), err error)
}

func (r *rig) gateways(edged string) []gateway {
	return []gateway{
		{routing, veth.ServerIP, true, func() (func(), error) { return func() {}, nil }},
		{nat, veth.NearIP, true, r.startNAT},
		{haproxy, veth.NearIP, false, func() (func(), error) { return r.startHAProxy("option splice-auto") }},
		{haproxyCpy, veth.NearIP, false, func() (func(), error) { return r.startHAProxy("") }},
		{nginx, veth.NearIP, false, r.startNginx},
		{edgedUser, veth.NearIP, false, func() (func(), error) { return r.startEdged(edged, "user") }},
		{edgedTC, veth.NearIP, false, func() (func(), error) { return r.startEdged(edged, "kernel") }},
		{routingTC, veth.ServerIP, true, func() (func(), error) { return r.startEdged(edged, "kernel") }},
	}
}

// launch starts a gateway and waits until connections pass.
func (r *rig) launch(g gateway) (stop func(), err error) {
	forward := "net.ipv4.ip_forward=0"
	if g.forwards {
		forward = "net.ipv4.ip_forward=1"
	}
	if _, err := veth.Run("ip", "netns", "exec", r.Gateway, "sysctl", "-qw", forward); err != nil {
		return nil, err
	}
	if stop, err = g.start(); err != nil {
		return nil, err
	}
	for range 100 {
		var c net.Conn
		if c, err = r.dial(g.target, echoPort); err == nil {
			_, err = c.Write([]byte{1})
			c.SetReadDeadline(time.Now().Add(2 * time.Second))
			if err == nil {
				_, err = c.Read(make([]byte, 1))
			}
			c.Close()
		}
		if err == nil {
			return stop, nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	stop()
	return nil, fmt.Errorf("no connection passes: %w", err)
}

func (r *rig) startNAT() (func(), error) {
	rules := fmt.Sprintf(`add table ip bench
add chain ip bench pre { type nat hook prerouting priority -100; }
add chain ip bench post { type nat hook postrouting priority 100; }
add rule ip bench pre ip daddr %s tcp dport { %d, %d } dnat to %s
add rule ip bench post ip daddr %s snat to %s
`, veth.NearIP, sinkPort, echoPort, veth.ServerIP, veth.ServerIP, veth.FarIP)
	cmd := exec.Command("ip", "netns", "exec", r.Gateway, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, skipError{fmt.Errorf("nft: %w: %s", err, bytes.TrimSpace(out))}
	}
	return func() {
		if _, err := veth.Run("ip", "netns", "exec", r.Gateway, "nft", "delete", "table", "ip", "bench"); err != nil {
			note("%v", err)
		}
	}, nil
}

func (r *rig) startHAProxy(option string) (func(), error) {
	listen := func(name string, port int) string {
		return fmt.Sprintf("listen %s\n bind %s:%d\n server s %s:%d\n", name, veth.NearIP, port, veth.ServerIP, port)
	}
	config := "global\n nbthread 1\n maxconn 1000\ndefaults\n mode tcp\n " + option +
		"\n timeout connect 5s\n timeout client 1m\n timeout server 1m\n" + listen("sink", sinkPort) + listen("echo", echoPort)
	file, err := r.File("haproxy.cfg", config)
	if err != nil {
		return nil, err
	}
	return r.Process("haproxy", "-q", "-db", "-f", file)
}

func (r *rig) startNginx() (func(), error) {
	listen := func(port int) string {
		return fmt.Sprintf(" server { listen %s:%d; proxy_pass %s:%d; }\n", veth.NearIP, port, veth.ServerIP, port)
	}
	config := "load_module " + nginxStream + ";\nworker_processes 1;\npid " + filepath.Join(r.Dir, "nginx.pid") +
		";\nerror_log stderr crit;\ndaemon off;\nevents { worker_connections 2000; }\nstream {\n" + listen(sinkPort) + listen(echoPort) + "}\n"
	file, err := r.File("nginx.conf", config)
	if err != nil {
		return nil, err
	}
	return r.Process("nginx", "-c", file, "-e", "stderr")
}

func (r *rig) startEdged(binary, via string) (func(), error) {
	forward := func(name string, port int) string {
		return fmt.Sprintf("  - {name: %s, listen: \"tcp://near:%d\", to: \"%s:%d\", allow: [192.0.2.0/24], per_source: 1000, via: %s}\n",
			name, port, veth.ServerIP, port, via)
	}
	admin := filepath.Join(r.Dir, "admin.sock")
	datapath := map[string]string{"user": "user", "kernel": "tc"}[via]
	config := "log: {level: error}\nadmin: {listen: \"unix:" + admin + "\"}\nstate: {dir: \"\"}\nmedia: {datapath: " + datapath + ", pin: \"\"}\n" +
		"networks: {near: {addresses: [" + veth.NearIP + "]}, far: {addresses: [" + veth.FarIP + "]}}\nforwards:\n" +
		forward("sink", sinkPort) + forward("echo", echoPort)
	file, err := r.File("edged.yaml", config)
	if err != nil {
		return nil, err
	}
	stop, err := r.Process(binary, "run", "--drain", "0s", "--config", file)
	if err != nil {
		return nil, err
	}
	if err := carriedBy(admin, via); err != nil {
		stop()
		return nil, err
	}
	return stop, nil
}

// carriedBy waits until edged says that the path is in use.
func carriedBy(admin, path string) error {
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", admin)
	}}}
	defer client.CloseIdleConnections()
	var last error
	for range 60 {
		time.Sleep(50 * time.Millisecond)
		var doc struct {
			Forwards []struct{ Path, Why string }
		}
		resp, err := client.Get("http://localhost/api/v1/forwards")
		if err != nil {
			last = err
			continue
		}
		err = json.NewDecoder(resp.Body).Decode(&doc)
		resp.Body.Close()
		if err != nil || len(doc.Forwards) == 0 {
			return fmt.Errorf("forwards: %d, %w", len(doc.Forwards), err)
		}
		last = nil
		for _, f := range doc.Forwards {
			if f.Path != path {
				last = skipError{errors.New(f.Why)}
			}
		}
		if last == nil {
			return nil
		}
	}
	return last
}
