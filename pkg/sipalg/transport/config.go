package transport

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Config holds the limits of the transports. The zero value of a field means its default.
// All of it may be changed while running by [Transport.SetLimits]; a connection that is open keeps
// the values with which it was opened, except MaxConns, PerSource and MaxDials, which count at the next one.
type Config struct {
	// MaxMessage is the largest SIP message in bytes, 1024-1048576; default 65535.
	MaxMessage int
	// Queue is how many bytes may wait for one slow peer before its connection is closed;
	// at least MaxMessage; default 256 KiB.
	Queue int
	// PerSource is how many accepted connections one source may hold open (an address; outside, an
	// IPv6 /64), default 64. Exempt sources are not counted.
	PerSource int
	// Exempt are the sources that PerSource does not bind: trunks, offices behind one address.
	Exempt []netip.Prefix
	// MaxConns is how many connections may be open in all, dialled ones included; default 20000.
	MaxConns int
	// MaxDials is how many connections may be under way at once; default 512.
	MaxDials int
	// Handshake bounds the TLS handshake and the WebSocket upgrade together; default 10 s.
	Handshake time.Duration
	// Dial bounds connecting and the handshakes that follow; default 10 s.
	Dial time.Duration
	// FirstByte is how long an accepted connection may live without one whole message, unless its
	// certificate was verified; default 30 s.
	FirstByte time.Duration
	// Complete is how long a message may take from its first byte to its last; default 15 s.
	Complete time.Duration
	// Write is how long a peer may accept nothing while bytes wait for it; default 20 s.
	Write time.Duration
	// Idle is how long a connection may be quiet, keep-alives counted as sound; default 2 h, because
	// a registered phone need not speak more often than it registers. Dead peers are found earlier,
	// by TCP keep-alives.
	Idle time.Duration
	// Ping is how often a WebSocket is pinged: HTTP proxies on the way close what is quiet for a
	// minute. A peer that has not answered within Write is dropped. Default 25 s.
	Ping time.Duration
	// Dscp marks what sockets send that are opened or served from now on: 0-63, 0 leaves the system's default. 24 (CS3) is usual for signalling.
	Dscp int
	// Origins are patterns (path.Match) of the hosts whose pages may open a WebSocket besides the
	// host that the request names. Clients that are no browsers send no Origin and are let in.
	Origins []string
}

func (c Config) withDefaults() Config {
	c.MaxMessage = cmp.Or(c.MaxMessage, 65535)
	c.Queue = max(cmp.Or(c.Queue, 256<<10), c.MaxMessage)
	c.PerSource = cmp.Or(c.PerSource, 64)
	c.MaxConns = cmp.Or(c.MaxConns, 20000)
	c.MaxDials = cmp.Or(c.MaxDials, 512)
	c.Handshake = cmp.Or(c.Handshake, 10*time.Second)
	c.Dial = cmp.Or(c.Dial, 10*time.Second)
	c.FirstByte = cmp.Or(c.FirstByte, 30*time.Second)
	c.Complete = cmp.Or(c.Complete, 15*time.Second)
	c.Write = cmp.Or(c.Write, 20*time.Second)
	c.Idle = cmp.Or(c.Idle, 2*time.Hour)
	c.Ping = cmp.Or(c.Ping, 25*time.Second)
	return c
}

// Validate returns every fault, each with the name of its field.
func (c Config) Validate() error {
	var faults []error
	fault := func(field, format string, args ...any) {
		faults = append(faults, fmt.Errorf(field+": "+format, args...))
	}
	if c.MaxMessage != 0 && (c.MaxMessage < 1024 || c.MaxMessage > 1<<20) {
		fault("max_message", "%d is not within 1024-1048576 bytes", c.MaxMessage)
	}
	for _, f := range []struct {
		name  string
		value int
	}{{"queue", c.Queue}, {"per_source", c.PerSource}, {"max_conns", c.MaxConns}, {"max_dials", c.MaxDials}} {
		if f.value < 0 {
			fault(f.name, "%d is negative", f.value)
		}
	}
	for _, f := range []struct {
		name  string
		value time.Duration
	}{{"handshake", c.Handshake}, {"dial", c.Dial}, {"first_byte", c.FirstByte}, {"complete", c.Complete}, {"write", c.Write}, {"idle", c.Idle}, {"ping", c.Ping}} {
		if f.value < 0 {
			fault(f.name, "%v is negative", f.value)
		}
	}
	if c.Dscp < 0 || c.Dscp > 63 {
		fault("dscp", "%d is not within 0-63", c.Dscp)
	}
	return errors.Join(faults...)
}

func (c Config) exempt(a netip.Addr) bool {
	for _, p := range c.Exempt {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
