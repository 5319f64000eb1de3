package media

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"edged.dev/edged/pkg/pinhole"
)

// gather returns the metrics as "name{label=value,...}": value.
func gather(t *testing.T, r *Relay) map[string]float64 {
	t.Helper()
	reg := prometheus.NewRegistry()
	reg.MustRegister(r)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			got[f.GetName()+"{"+strings.Join(labels, ",")+"}"] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return got
}

func TestMetrics(t *testing.T) {
	r, path := newTestRelay(t, func(c *PinholeConfig) { c.PerOwner = 1 })
	l := mustOpen(t, r, testRequest(pinhole.RTP))
	near, far := l.Local(pinhole.Near), l.Local(pinhole.Far)
	declare(t, l, pinhole.Near, nearPhone)
	path.packet(far.Addr, farPhone, []byte("nobody is declared"))
	declare(t, l, pinhole.Far, farPhone)
	path.packet(near.Addr, nearPhone, make([]byte, 172))
	path.packet(near.Addr, nearPhone, make([]byte, 172))
	path.unreachable(far.Addr)
	if _, err := r.Open(context.Background(), testRequest(pinhole.RTP)); err == nil {
		t.Fatal("the limit does not hold")
	}
	want := map[string]float64{
		"edged_media_leases{kind=rtp}":                                            1,
		"edged_media_ports_in_use{address=127.0.3.1,ports=50000-59999,proto=udp}": 2,
		"edged_media_ports_limit{address=127.0.4.1,ports=50000-59999,proto=udp}":  10000,
		"edged_media_packets_total{direction=received,network=inside}":            2,
		"edged_media_packets_total{direction=sent,network=outside}":               2,
		"edged_media_bytes_total{direction=sent,network=outside}":                 344,
		"edged_media_packets_total{direction=sent,network=inside}":                0,
		"edged_media_dropped_total{reason=unknown_source}":                        1,
		"edged_media_unreachable_total{}":                                         1,
		"edged_media_refused_total{reason=owner_limit}":                           1,
	}
	check := func(when string) {
		t.Helper()
		got := gather(t, r)
		for k, v := range want {
			if g, ok := got[k]; !ok || g != v {
				t.Errorf("%s: %s is %v, want %v", when, k, g, v)
			}
		}
	}
	check("open")
	l.Close()
	want["edged_media_leases{kind=rtp}"] = 0
	want["edged_media_ports_in_use{address=127.0.3.1,ports=50000-59999,proto=udp}"] = 0
	check("closed")
}

func TestPinholes(t *testing.T) {
	r, path := newTestRelay(t, nil)
	l := mustOpen(t, r, testRequest(pinhole.RTP))
	defer l.Close()
	declareBoth(t, l)
	path.packet(l.Local(pinhole.Near).Addr, nearPhone, make([]byte, 100))
	text, err := json.Marshal(r.Pinholes())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"owner":"127.0.3.7","label":"a call","kind":"rtp","path":"user"`,
		`"declared":"127.0.3.7:4000","latched":"127.0.3.7:4000"`,
		`"packets":1,"bytes":100`,
		`"network":"outside"`,
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%s is not in %s", want, text)
		}
	}
	if strings.Count(string(text), `"latched"`) != 1 {
		t.Errorf("an address that is not known is shown: %s", text)
	}
}
