package sipalg

import (
	"testing"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole/pinholetest"
	"edged.dev/edged/pkg/sipalg/flow"
)

// TestCalled: what a transparent listener has taken goes where the client had sent it, whatever the Request-URI and a Route
// name, but not where hosts of its network may not send; what the configuration says goes first.
func TestCalled(t *testing.T) {
	nets := testNetworks()
	for name, c := range map[string]struct {
		called, route string
		domains       map[string]Domain
		want          string // of the request; "" for none
		status        string
	}{
		"its server": {called: "203.0.113.9:5060", want: "203.0.113.9:5060"},
		"its proxy":  {called: "203.0.113.9:5060", route: "<sip:192.0.2.99;lr>", want: "203.0.113.9:5060"},
		"a domain":   {called: "203.0.113.9:5060", domains: map[string]Domain{"example.org": {Network: "outside", Server: "udp:198.51.100.20:5070"}}, want: "198.51.100.20:5070"},
		"loopback":   {called: "127.0.0.1:5060", status: "SIP/2.0 403 Relaying Denied"},
		"multicast":  {called: "224.0.1.75:5060", status: "SIP/2.0 403 Relaying Denied"},
	} {
		t.Run(name, func(t *testing.T) {
			core := newTestCore(testConfig(func(cfg *Config) { cfg.Domains = c.domains }), nets, pinholetest.New(nets, 50000), zap.NewNop())
			now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
			var out Output
			core.Begin(now, &out)
			out.reset()
			raw := "OPTIONS sip:bob@example.org SIP/2.0\r\nVia: SIP/2.0/UDP 10.0.0.7:5060;branch=z9hG4bK1\r\nMax-Forwards: 70\r\n"
			if c.route != "" {
				raw += "Route: " + c.route + "\r\n"
			}
			raw += "From: <sip:alice@example.org>;tag=a\r\nTo: <sip:bob@example.org>\r\nCall-ID: 1\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n"
			f := flow.Flow{Network: "inside", Proto: flow.UDP, Local: ap("10.0.0.1:5060"), Remote: ap("10.0.0.7:5060"), Called: ap(c.called)}
			core.Receive(now, f, []byte(raw), &out)
			var went, status string
			for i, it := range out.items {
				switch m := parseMsg(string(out.bytes(i))); {
				case it.flow.Network == "inside":
					status = m.start
					if it.flow.Called != f.Called {
						t.Errorf("answered from %v", it.flow.Called)
					}
				default:
					went = it.flow.Remote.String()
				}
			}
			if went != c.want || c.status != "" && status != c.status {
				t.Errorf("went to %q and was answered %q", went, status)
			}
		})
	}
}
