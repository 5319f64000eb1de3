package transport

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"edged.dev/edged/pkg/sipalg/flow"
)

// reason says why bytes or a connection were dropped; it is a metric's label.
type reason uint8

const (
	none          reason = iota
	connLimit            // accepted, but MaxConns are open
	sourceLimit          // accepted, but the source has PerSource open
	dialLimit            // not dialled: MaxConns or MaxDials
	dialFailed           // a connection could not be made
	handshake            // the TLS handshake failed or took too long
	upgrade              // the WebSocket upgrade was refused or took too long
	firstByte            // no whole message within FirstByte
	incomplete           // a message was not complete within Complete
	idle                 // quiet for Idle
	framing              // the stream cannot be cut into messages
	noPong               // a WebSocket ping was not answered
	slowPeer             // the queue was full
	writeFailed          // a write failed or took too long
	sendFailed           // a datagram was refused by the system
	badSTUN              // a malformed or unwanted STUN message
	emptyDatagram        // a datagram of nothing but CR, LF, NUL: a keep-alive
	oversize             // a datagram or WebSocket message longer than MaxMessage
	queueFull            // too much waited for a connection under way
	acceptFailed         // accept returned an error (no descriptors left)
	reasons
)

func (r reason) String() string {
	return [reasons]string{
		"none", "connection_limit", "source_limit", "dial_limit", "dial_failed", "handshake", "upgrade", "first_byte_timeout",
		"incomplete_message", "idle", "framing", "no_pong", "slow_peer", "write_failed", "send_failed", "stun", "keepalive", "oversize",
		"dial_queue_full", "accept_failed",
	}[r]
}

// counters are written by every goroutine and read by Collect.
type counters struct {
	drops    [reasons]atomic.Uint64
	messages [flow.WSS + 1][2]atomic.Uint64 // in, out
}

func (c *counters) drop(r reason)         { c.drops[r].Add(1) }
func (c *counters) received(p flow.Proto) { c.messages[p][0].Add(1) }
func (c *counters) sent(p flow.Proto)     { c.messages[p][1].Add(1) }

type descs struct{ conns, drops, messages *prometheus.Desc }

func newDescs() descs {
	return descs{
		conns: prometheus.NewDesc("edged_sip_connections", "Open SIP connections.", []string{"network", "transport", "direction"}, nil),
		drops: prometheus.NewDesc("edged_sip_transport_drops_total",
			"Connections, datagrams and messages that the SIP transports dropped.", []string{"reason"}, nil),
		messages: prometheus.NewDesc("edged_sip_messages_total", "SIP messages, keep-alives not counted.", []string{"transport", "direction"}, nil),
	}
}

// Describe implements [prometheus.Collector].
func (t *Transport) Describe(ch chan<- *prometheus.Desc) {
	ch <- t.descs.conns
	ch <- t.descs.drops
	ch <- t.descs.messages
}

// Collect implements [prometheus.Collector].
func (t *Transport) Collect(ch chan<- prometheus.Metric) {
	for r := none + 1; r < reasons; r++ {
		ch <- prometheus.MustNewConstMetric(t.descs.drops, prometheus.CounterValue, float64(t.count.drops[r].Load()), r.String())
	}
	for p := flow.UDP; p <= flow.WSS; p++ {
		for i, dir := range [2]string{"in", "out"} {
			ch <- prometheus.MustNewConstMetric(t.descs.messages, prometheus.CounterValue, float64(t.count.messages[p][i].Load()), p.String(), dir)
		}
	}
	type key struct{ network, proto, dir string }
	open := map[key]int{}
	t.mu.RLock()
	for _, c := range t.conns {
		open[key{c.flow.Network, c.flow.Proto.String(), c.direction()}]++
	}
	t.mu.RUnlock()
	for k, n := range open {
		ch <- prometheus.MustNewConstMetric(t.descs.conns, prometheus.GaugeValue, float64(n), k.network, k.proto, k.dir)
	}
}
