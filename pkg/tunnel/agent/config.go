package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/tunnel/carrier"
	"edged.dev/edged/pkg/tunnel/device"
	"edged.dev/edged/pkg/tunnel/proxydial"
	"edged.dev/edged/pkg/tunnel/uplink"
)

// Config is the section "agent" of the configuration.
type Config struct {
	Relays       []Relay              `yaml:"relays" jsonschema_description:"relays, the first that answers is used; without one the agent is off"`
	Proxy        proxydial.Config     `yaml:"proxy" jsonschema_description:"the proxy of the site, if the way out leads through one"`
	Rungs        []carrier.Rung       `yaml:"rungs" jsonschema_description:"ways to the relay that are tried: quic, tls, connect, socks5, wss, ws, longlived, keepalive, polling; empty: all"`
	PortHTTP     uint16               `yaml:"http_port" jsonschema:"minimum=1,maximum=65535,default=80" jsonschema_description:"the relays' port of plain HTTP"`
	KeyFile      string               `yaml:"key_file" jsonschema:"default=" jsonschema_description:"the device's key, made if there is none (edged tunnel key); relative to this file; empty: tunnel/device.key in state.dir"`
	Messages     string               `yaml:"messages_socket" jsonschema:"default=" jsonschema_description:"the unix socket at which programs here leave and fetch messages (docs/protocols/mailbox.md); relative to this file; empty: tunnel/messages.sock in state.dir, none without it"`
	Devices      map[string]device.ID `yaml:"devices" jsonschema_description:"names for the IDs of other devices: NAME: ID; live"`
	Services     map[string]Service   `yaml:"services" jsonschema_description:"what other devices may reach here: NAME: {tcp: HOST:PORT, allow: [...]}; live"`
	Forwards     []Forward            `yaml:"forwards" jsonschema_description:"ports here that lead to services of other devices"`
	Applications Applications         `yaml:"applications" jsonschema_description:"proxies by which applications here reach services by name"`
}

// DefaultConfig returns the defaults; the section is off as long as Relays is empty.
func DefaultConfig() Config { return Config{PortHTTP: 80} }

// Relay is where a device goes.
type Relay struct {
	Address string    `yaml:"address" jsonschema:"required" jsonschema_description:"HOST or HOST:PORT; the port is 443 if none is named"`
	ID      device.ID `yaml:"id" jsonschema:"required" jsonschema_description:"the relay's own ID (edged tunnel key --relay): no other is talked to"`
}

// HostPort returns the relay's host and port.
func (r Relay) HostPort() (string, uint16, error) {
	return uplink.HostPort(r.Address)
}

// Service is something at this site that other devices may reach.
type Service struct {
	TCP   string        `yaml:"tcp" jsonschema:"default=" jsonschema_description:"HOST:PORT to which connections are made"`
	UDP   string        `yaml:"udp" jsonschema:"default=" jsonschema_description:"HOST:PORT to which datagrams are sent, from a port of its own for each source"`
	Allow []string      `yaml:"allow" jsonschema:"required" jsonschema_description:"who may: names under agent.devices, IDs, or * for whomever the relay lets"`
	Idle  time.Duration `yaml:"idle" jsonschema_description:"udp: how long a source may be silent both ways; default 3m"`
}

// DefaultIdle is how long datagrams may be missing both ways.
const DefaultIdle = 3 * time.Minute

// target returns the network and address of a service.
func (s Service) target() (network, address string) {
	if s.UDP != "" {
		return "udp", s.UDP
	}
	return "tcp", s.TCP
}

// Forward is a port of this site that leads to a service of another device.
type Forward struct {
	Listen  Listen        `yaml:"listen" jsonschema:"required" jsonschema_description:"tcp://ADDRESS:PORT or udp://ADDRESS:PORT"`
	Device  string        `yaml:"device" jsonschema:"required" jsonschema_description:"name under agent.devices, or an ID"`
	Service string        `yaml:"service" jsonschema:"required" jsonschema_description:"the service as that device names it"`
	Idle    time.Duration `yaml:"idle" jsonschema_description:"udp: how long a source may be silent both ways; default 3m"`
	Flows   int           `yaml:"flows" jsonschema:"minimum=0,maximum=65536,default=1024" jsonschema_description:"connections, or sources of datagrams, at a time"`
}

// DefaultFlows is how many connections or sources a forward has at a time.
const DefaultFlows = 1024

// Listen is where a forward listens, written "tcp://ADDRESS:PORT" or "udp://ADDRESS:PORT".
type Listen struct {
	Proto string // tcp or udp
	At    netip.AddrPort
}

// UnmarshalText reads "tcp://ADDRESS:PORT" or "udp://ADDRESS:PORT".
func (l *Listen) UnmarshalText(b []byte) error {
	proto, rest, _ := strings.Cut(string(b), "://")
	at, err := netip.ParseAddrPort(rest)
	if err != nil || proto != "tcp" && proto != "udp" || at.Port() == 0 {
		return fmt.Errorf("%q is not tcp://ADDRESS:PORT or udp://ADDRESS:PORT", b)
	}
	*l = Listen{proto, at}
	return nil
}

// MarshalText writes what UnmarshalText reads.
func (l Listen) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// String returns "PROTO://ADDRESS:PORT".
func (l Listen) String() string { return l.Proto + "://" + l.At.String() }

// Resolve returns the ID that a name under devices, or an ID, means.
func (c *Config) Resolve(name string) (device.ID, error) {
	if id, ok := c.Devices[name]; ok {
		return id, nil
	}
	if id, err := device.ParseID(name); err == nil {
		return id, nil
	}
	return device.ID{}, fmt.Errorf("%q is neither a name under agent.devices nor a device ID", name)
}

// Validate returns all faults of the section, each a [pinhole.Fault], joined.
func (c *Config) Validate() error {
	var faults pinhole.Faults
	for i, r := range c.Relays {
		if _, _, err := r.HostPort(); err != nil {
			faults.Add(fmt.Sprintf("relays[%d].address", i), "%v", err)
		}
		if r.ID.IsZero() {
			faults.Add(fmt.Sprintf("relays[%d].id", i), "is needed: edged tunnel key --relay prints it at the relay")
		}
	}
	if err := c.Proxy.Validate(); err != nil {
		for _, e := range unjoined(err) {
			key, text, _ := strings.Cut(e.Error(), ": ")
			faults.Add("proxy."+key, "%s", text)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Devices)) {
		if err := device.CheckName(name); err != nil {
			faults.Add("devices."+name, "%v", err)
		} else if c.Devices[name].IsZero() {
			faults.Add("devices."+name, "needs an ID")
		}
	}
	if len(c.Relays) == 0 && len(c.Services)+len(c.Forwards)+len(c.Applications.Listen) > 0 {
		faults.Add("relays", "at least one is needed: the services and forwards are reached through it")
	}
	for _, name := range slices.Sorted(maps.Keys(c.Services)) {
		c.validateService(&faults, name)
	}
	c.validateApplications(&faults)
	for i, f := range c.Forwards {
		c.validateForward(&faults, fmt.Sprintf("forwards[%d]", i), f)
		for j, other := range c.Forwards[:i] {
			if other.Listen == f.Listen {
				faults.Add(fmt.Sprintf("forwards[%d].listen", i), "%s is also that of forwards[%d]", f.Listen, j)
			}
		}
	}
	return faults.Err()
}

// unjoined takes apart what errors.Join made.
func unjoined(err error) []error {
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		return many.Unwrap()
	}
	return []error{err}
}

func (c *Config) validateService(faults *pinhole.Faults, name string) {
	key, s := "services."+name, c.Services[name]
	if err := device.CheckName(name); err != nil {
		faults.Add(key, "%v", err)
	}
	if (s.TCP == "") == (s.UDP == "") {
		faults.Add(key, "needs either tcp or udp")
	}
	if network, address := s.target(); address != "" {
		if err := checkTarget(address); err != nil {
			faults.Add(key+"."+network, "%v", err)
		}
	}
	if len(s.Allow) == 0 {
		faults.Add(key+".allow", "nobody could reach it: name devices, or * for whomever the relay lets")
	}
	for i, who := range s.Allow {
		if _, err := c.Resolve(who); err != nil && who != device.Any {
			faults.Add(fmt.Sprintf("%s.allow[%d]", key, i), "%v", err)
		}
	}
	checkIdle(faults, key, s.Idle)
}

func (c *Config) validateForward(faults *pinhole.Faults, key string, f Forward) {
	if !f.Listen.At.IsValid() {
		faults.Add(key+".listen", "is needed, e.g. tcp://127.0.0.1:2222")
	}
	if _, err := c.Resolve(f.Device); err != nil {
		faults.Add(key+".device", "%v", err)
	}
	if err := device.CheckName(f.Service); err != nil {
		faults.Add(key+".service", "%v", err)
	}
	if f.Flows < 0 || f.Flows > 1<<16 {
		faults.Add(key+".flows", "%d is not within 0-65536; 0 is the default", f.Flows)
	}
	checkIdle(faults, key, f.Idle)
}

func checkIdle(faults *pinhole.Faults, key string, d time.Duration) {
	if d != 0 && (d < time.Second || d > 24*time.Hour) {
		faults.Add(key+".idle", "%v is not within 1s-24h", d)
	}
}

// checkTarget says what is wrong with HOST:PORT.
func checkTarget(address string) error {
	host, port, err := net.SplitHostPort(address)
	n, perr := strconv.ParseUint(port, 10, 16)
	if err != nil || perr != nil || n == 0 || host == "" {
		return fmt.Errorf("%q is not HOST:PORT", address)
	}
	return nil
}

// Handler serves a stream of another device in the process itself, and closes it.
type Handler func(ctx context.Context, c *Conn)

var errNoRelay = errors.New("the agent has no relay")
