package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
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
	fixed := func(*clients) (string, func(), error) { return fmt.Sprintf("%s:%d", farIP, gatePort), func() {}, nil }
	return []gateway{
		{edged, func() (func(), error) { return r.startEdged(binary, "") }, r.inviteBySIP},
		{edgedCheck, func() (func(), error) { return r.startEdged(binary, ", content: {verify: true, types: [executable]}") }, r.inviteBySIP},
		{haproxy, func() (func(), error) { return r.startHAProxy("option splice-auto") }, fixed},
		{haproxyCpy, func() (func(), error) { return r.startHAProxy("") }, fixed},
	}
}

func (r *rig) startHAProxy(option string) (func(), error) {
	config := fmt.Sprintf("global\n nbthread 1\n maxconn 1000\ndefaults\n mode tcp\n %s\n timeout connect 5s\n timeout client 1m\n timeout server 1m\n"+
		"listen file\n bind %s:%d\n server s %s:%d\n", option, farIP, gatePort, clientIP, clientPort)
	file, err := r.file("haproxy.cfg", config)
	if err != nil {
		return nil, err
	}
	return r.process("haproxy", "-q", "-db", "-f", file)
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
`, filepath.Join(r.dir, "admin.sock"), nearIP, farIP, sipPort, sipPort, serverIP, sipPort, clientIP, sipPort, options)
	file, err := r.file("edged.yaml", config)
	if err != nil {
		return nil, err
	}
	return r.process(binary, "run", "--drain", "0s", "--config", file)
}

func (r *rig) file(name, text string) (string, error) {
	path := filepath.Join(r.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return "", fmt.Errorf("configuration: %w", err)
	}
	return path, nil
}

// process starts a program in the gateway, on its core, before other programs there.
func (r *rig) process(args ...string) (stop func(), err error) {
	cmd := exec.Command("ip", append([]string{"netns", "exec", r.gw, "chrt", "--rr", "1", "taskset", "-c", fmt.Sprint(gwCPU)}, args...)...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start: %w", err)
	}
	return func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
		kill := time.AfterFunc(5*time.Second, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
		_ = cmd.Wait() // ended by a signal
		kill.Stop()
	}, nil
}
