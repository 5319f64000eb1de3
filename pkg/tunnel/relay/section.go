package relay

import (
	"fmt"
	"slices"
	"strings"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/tunnel/device"
	"edged.dev/edged/pkg/tunnel/groove"
	"edged.dev/edged/pkg/tunnel/mailbox"
	"edged.dev/edged/pkg/tunnel/uplink"
)

// Config is the section "tunnel" of the configuration.
type Config struct {
	Listen    []Listen       `yaml:"listen" jsonschema_description:"listeners: https://NETWORK:PORT (443; TLS, and WebSocket if there is a certificate under tls), quic://NETWORK:PORT (UDP 443), http://NETWORK:PORT (80; also Groove's HTTP), groove://NETWORK:PORT (2492, 443: Groove's own stream)"`
	KeyFile   string         `yaml:"key_file" jsonschema:"default=" jsonschema_description:"the relay's own key, made if there is none; relative to this file; empty: tunnel/relay.key in state.dir"`
	UsersFile string         `yaml:"users_file" jsonschema:"default=" jsonschema_description:"devices that are admitted, one a line: ID NAME [GROUP,GROUP...]; relative to this file; those that enrolled themselves come beside; live"`
	Policy    []device.Rule  `yaml:"policy" jsonschema_description:"which devices may reach which services of which; what no rule lets is refused; live"`
	Limits    Limits         `yaml:"limits" jsonschema_description:"what one device may ask for"`
	Groove    groove.Config  `yaml:"groove" jsonschema_description:"Groove relays of others that are published at listeners of http and groove"`
	Mailbox   mailbox.Config `yaml:"mailbox" jsonschema_description:"messages for devices that are away, in state.dir; a device may send to those whose service mailbox the policy lets it reach"`
	Peers     []Peer         `yaml:"peers" jsonschema_description:"other relays: they are asked for devices that are not attached here, and may ask this one; one hop, never more"`
}

// Peer is another relay.
type Peer struct {
	Address string    `yaml:"address" jsonschema:"required" jsonschema_description:"HOST or HOST:PORT; the port is 443 if none is named"`
	ID      device.ID `yaml:"id" jsonschema:"required" jsonschema_description:"that relay's ID (edged tunnel key --relay)"`
}

// Schemes of listeners.
const (
	HTTPS  = "https"
	HTTP   = "http"
	QUIC   = "quic"
	Groove = "groove" // the stream of its SSTP
)

// Listen is a listener: https, http, quic or groove.
type Listen = pinhole.ServiceListen

// DefaultConfig returns the defaults; the section is off as long as Listen is empty.
func DefaultConfig() Config { return Config{Limits: DefaultLimits(), Mailbox: mailbox.Default()} }

// Rules returns what may change while streams live.
func (c Config) Rules() Rules { return Rules{c.Policy, c.Limits} }

// PeerIDs returns the IDs of the other relays.
func (c Config) PeerIDs() map[device.ID]bool {
	ids := map[device.ID]bool{}
	for _, p := range c.Peers {
		ids[p.ID] = true
	}
	return ids
}

// Validate returns all faults of the section, each a [pinhole.Fault] or keyed alike, joined.
func (c Config) Validate(nets pinhole.Networks) error {
	var faults pinhole.Faults
	for i, l := range c.Listen {
		switch err := l.Check(nets, HTTPS, HTTP, QUIC, Groove); {
		case err != nil:
			faults.Add(fmt.Sprintf("listen[%d]", i), "%v", err)
		case l.Proto == Groove && len(c.Groove.Relays) == 0:
			faults.Add(fmt.Sprintf("listen[%d]", i), "%s leads nowhere: name a relay under tunnel.groove.relays", l)
		}
	}
	for i, r := range c.Policy {
		nested(&faults, fmt.Sprintf("policy[%d]", i), r.Validate())
	}
	for i, p := range c.Peers {
		if _, _, err := uplink.HostPort(p.Address); err != nil {
			faults.Add(fmt.Sprintf("peers[%d].address", i), "%v", err)
		}
		if p.ID.IsZero() {
			faults.Add(fmt.Sprintf("peers[%d].id", i), "is needed: edged tunnel key --relay prints it at the other relay")
		}
		if slices.ContainsFunc(c.Peers[:i], func(o Peer) bool { return o.ID == p.ID }) {
			faults.Add(fmt.Sprintf("peers[%d].id", i), "stands twice")
		}
	}
	brings := func(l Listen) bool { return l.Proto == HTTP || l.Proto == HTTPS || l.Proto == Groove }
	if len(c.Groove.Relays) > 0 && !slices.ContainsFunc(c.Listen, brings) {
		faults.Add("groove.relays", "no listener brings clients: groove://NETWORK:2492 or http://NETWORK:80 under tunnel.listen")
	}
	nested(&faults, "groove", c.Groove.Validate())
	c.Limits.validate(&faults)
	if c.Mailbox.Total > 0 {
		nested(&faults, "mailbox", c.Mailbox.Validate())
	}
	return faults.Err()
}

// nested adds the faults of a part, each "key: what is wrong", below its key.
func nested(faults *pinhole.Faults, key string, err error) {
	if err == nil {
		return
	}
	all := []error{err}
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		all = many.Unwrap()
	}
	for _, e := range all {
		inner, text, _ := strings.Cut(e.Error(), ": ")
		faults.Add(key+"."+inner, "%s", text)
	}
}

func (l Limits) validate(faults *pinhole.Faults) {
	for _, n := range []struct {
		key       string
		value     int64
		low, high int64
	}{
		{"limits.streams", int64(l.Streams), 1, 1 << 16}, {"limits.opens_per_second", int64(l.Opens), 0, 1 << 20},
		{"limits.bandwidth", l.Bandwidth, 0, 1 << 40}, {"limits.sessions", int64(l.Sessions), 1, 1 << 20},
	} {
		if n.value < n.low || n.value > n.high {
			faults.Add(n.key, "%d is not within %d-%d", n.value, n.low, n.high)
		}
	}
}
