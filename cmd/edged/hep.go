package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"edged.dev/edged/pkg/trace"
	"edged.dev/edged/pkg/trace/hep"
)

type hepConfig struct {
	To      hepTarget `yaml:"to" jsonschema:"default=" jsonschema_description:"udp://ADDRESS:PORT of a collector such as Homer, which gets a copy of all signalling by HEP3; empty = none"`
	ID      uint32    `yaml:"id" jsonschema:"default=2001" jsonschema_description:"number by which the collector knows this edge"`
	Secrets bool      `yaml:"secrets" jsonschema:"default=false" jsonschema_description:"send digest responses and keys too, which are masked otherwise"`
}

// hepTarget is where a collector listens; the zero value is none.
type hepTarget struct{ netip.AddrPort }

// UnmarshalText reads udp://ADDRESS:PORT.
func (t *hepTarget) UnmarshalText(b []byte) (err error) {
	at, ok := strings.CutPrefix(string(b), "udp://")
	if len(b) == 0 {
		t.AddrPort = netip.AddrPort{}
		return nil
	}
	if ok {
		t.AddrPort, err = netip.ParseAddrPort(at)
	}
	if !ok || err != nil || t.Port() == 0 {
		return fmt.Errorf("%q is not udp://ADDRESS:PORT", b)
	}
	return nil
}

// MarshalText is the reverse of UnmarshalText.
func (t hepTarget) MarshalText() ([]byte, error) { //nolint:unparam // encoding.TextMarshaler
	if !t.IsValid() {
		return nil, nil
	}
	return []byte("udp://" + t.String()), nil
}

func (c hepConfig) validate(l *faultList, memory int64) {
	if c.To.IsValid() && memory == 0 {
		l.add("hep.to", "needs trace.memory, which is 0")
	}
}

// hepQueue is how many messages may wait for the socket: some tenths of a second of a flood.
const hepQueue = 1024

// hepExport sends copies of signalling to a collector. A collector that is away loses them, and holds nothing up.
type hepExport struct {
	cfg   hepConfig
	mask  *trace.Mask
	log   *zap.Logger
	queue chan trace.Message

	sent, dropped atomic.Uint64
}

// buildHEP builds the export; it has no socket before it serves, and needs no privilege.
func buildHEP(_ context.Context, d *serviceDeps) (*service, error) {
	x := &hepExport{cfg: d.cfg.HEP, mask: trace.NewMask(), log: d.log.Named("hep"), queue: make(chan trace.Message, hepQueue)}
	d.traces.ring.Watch(x.add)
	d.reg.MustRegister(x.metrics()...)
	return &service{serve: x.serve}, nil
}

func (x *hepExport) metrics() []prometheus.Collector {
	counter := func(name, help string, n *atomic.Uint64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return float64(n.Load()) })
	}
	return []prometheus.Collector{
		counter("edged_hep_packets_total", "Messages sent to the collector.", &x.sent),
		counter("edged_hep_dropped_total", "Messages that the collector did not get.", &x.dropped),
	}
}

func (x *hepExport) add(m trace.Message) {
	if m.Protocol != "" {
		return // HEP3 has no number for H.323
	}
	select {
	case x.queue <- m:
	default:
		x.dropped.Add(1)
	}
}

// serve sends until ctx ends.
func (x *hepExport) serve(ctx context.Context) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "udp", x.cfg.To.String())
	if err != nil {
		return fmt.Errorf("hep.to: %w", err)
	}
	defer conn.Close()
	var b []byte
	for failed := false; ; {
		select {
		case <-ctx.Done():
			return nil
		case m := <-x.queue:
			b = x.append(b[:0], m)
		}
		if _, err := conn.Write(b); err != nil { // refused by the last datagram's ICMP error, perhaps
			x.dropped.Add(1)
			if !failed {
				x.log.Warn("the collector is not reached", zap.Error(err))
			}
			failed = true
			continue
		}
		x.sent.Add(1)
		failed = false
	}
}

func (x *hepExport) append(b []byte, m trace.Message) []byte {
	p := hep.Packet{
		Time: m.Time, From: m.Remote, To: m.Local, Stream: m.Transport != "udp", Capture: x.cfg.ID, CallID: trace.CallID(m.Data), Data: m.Data,
	}
	if m.Out {
		p.From, p.To = m.Local, m.Remote
	}
	if !x.cfg.Secrets {
		p.Data = x.mask.Hide(p.Data)
	}
	return hep.Append(b, p)
}
