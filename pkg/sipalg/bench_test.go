package sipalg

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg/flow"
	"edged.dev/edged/pkg/sipalg/sipmsg"
)

// freeOpener grants leases that cost nothing, so that the core alone is measured.
type freeOpener struct{ lease freeLease }

type freeLease struct{ local [2]pinhole.Local }

func (o *freeOpener) Open(context.Context, pinhole.Request) (pinhole.Lease, error) {
	return &o.lease, nil
}
func (l *freeLease) Local(s pinhole.Side) pinhole.Local             { return l.local[s] }
func (l *freeLease) Declare(s pinhole.Side, r pinhole.Remote) error { return nil }
func (l *freeLease) Fork() (pinhole.Lease, error)                   { return l, nil }
func (l *freeLease) Close() pinhole.Summary                         { return pinhole.Summary{} }

// BenchmarkForwardInvite forwards the INVITE of a desk phone (1.4 KB): parse, guard, route,
// transactions, session, pinhole, session description, 100 and the INVITE as sent on. Calls are refused
// and forgotten outside of the measured time, 256 at once.
func BenchmarkForwardInvite(b *testing.B) {
	b.Run("plain", func(b *testing.B) { benchmarkForwardInvite(b, nil) })
	b.Run("editor", func(b *testing.B) { benchmarkForwardInvite(b, &editor{}) }) // who has no contents pays nothing
}

func benchmarkForwardInvite(b *testing.B, e ContentEditor) {
	core, raw, phone, server := deskCall(b)
	core.contents = e
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var out, more Output
	core.Begin(now, &out)

	const batch = 256
	branch := bytes.Index(raw, []byte("5a3f0c8b7E1D2C4A"))
	call := bytes.Index(raw, []byte("8d1f7c0e5b2a4936"))
	var replies [][]byte
	var refusal []byte
	var m sipmsg.Message
	n := uint64(0)
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	var used time.Duration
	begin := cpuTime(b)
	b.ResetTimer()
	for i := range b.N {
		n++
		appendHex(raw[branch:branch], n)
		appendHex(raw[call:call], n)
		out.reset()
		core.Receive(now, phone, raw, &out)
		if len(out.items) != 2 {
			b.Fatalf("%d messages", len(out.items))
		}
		if i%batch != batch-1 && i != b.N-1 {
			if len(replies) < batch-1 {
				replies = append(replies, out.bytes(1))
			}
			continue
		}
		b.StopTimer()
		used += cpuTime(b) - begin
		replies = append(replies, out.bytes(1))
		for _, req := range replies {
			refusal = appendRefusal(b, refusal[:0], &m, req)
			more.reset()
			core.Receive(now, server, refusal, &more)
		}
		replies = replies[:0]
		now = now.Add(time.Minute)
		more.reset()
		core.Tick(now, &more)
		if len(core.client) != 0 || len(core.sessions) != 0 {
			b.Fatalf("%d transactions and %d sessions are left", len(core.client), len(core.sessions))
		}
		b.StartTimer()
		begin = cpuTime(b)
	}
	b.ReportMetric(float64(used.Nanoseconds())/float64(b.N), "cpu-ns/op")
}

// cpuTime is what the process has used: the figure that counts on a machine with other work.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// deskCall returns a core whose pinholes cost nothing, the desk phone's INVITE, and both flows.
func deskCall(b *testing.B) (core *Core, raw []byte, phone, server flow.Flow) {
	b.Helper()
	raw, err := os.ReadFile(filepath.Join("sipmsg", "testdata", "desk.sip"))
	if err != nil {
		b.Fatal(err)
	}
	raw = bytes.ReplaceAll(raw, []byte("192.0.2.23"), []byte("10.0.0.123")) // as long as before
	o := &freeOpener{}
	o.lease.local = [2]pinhole.Local{
		{Addr: ap("10.0.0.1:50000"), RTCP: ap("10.0.0.1:50001")}, {Addr: ap("198.51.100.1:50000"), RTCP: ap("198.51.100.1:50001")},
	}
	cfg := testConfig(func(c *Config) {
		c.Domains["pbx.example.org"] = Domain{Network: "outside", Server: "udp:198.51.100.20:5060"}
	})
	core = newTestCore(cfg, testNetworks(), o, zap.NewNop())
	core.limits = Limits{}
	phone = flow.Flow{Network: "inside", Proto: flow.UDP, Local: ap("10.0.0.1:5060"), Remote: ap("10.0.0.123:5060")}
	server = flow.Flow{Network: "outside", Proto: flow.UDP, Local: ap("198.51.100.1:5060"), Remote: ap("198.51.100.20:5060")}
	return core, raw, phone, server
}

// BenchmarkEstablishedCall reports the memory that the core keeps for a call that is up, its
// transactions being over.
func BenchmarkEstablishedCall(b *testing.B) {
	const calls = 2000
	for b.Loop() {
		core, raw, phone, server := deskCall(b)
		branch := bytes.Index(raw, []byte("5a3f0c8b7E1D2C4A"))
		call := bytes.Index(raw, []byte("8d1f7c0e5b2a4936"))
		now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		var out Output
		core.Begin(now, &out)
		before := heapInUse()
		for n := range uint64(calls) {
			appendHex(raw[branch:branch], n)
			appendHex(raw[call:call], n)
			out.reset()
			core.Receive(now, phone, raw, &out)
			answer := answerOf(out.bytes(1), "200 OK", "Contact: <sip:2002@198.51.100.20>\r\n", sdpOf("198.51.100.20", 6000))
			out.reset()
			core.Receive(now, server, answer, &out)
		}
		out = Output{}
		core.Tick(now.Add(time.Minute), &out)
		if len(core.sessions) != calls || len(core.client) != 0 {
			b.Fatalf("%d sessions, %d transactions", len(core.sessions), len(core.client))
		}
		b.ReportMetric(float64(heapInUse()-before)/calls, "B/call")
		runtime.KeepAlive(core)
	}
}

func heapInUse() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// appendRefusal answers a request with 486, without garbage: the collector's share of the figures shall be
// the core's own.
func appendRefusal(b *testing.B, dst []byte, m *sipmsg.Message, req []byte) []byte {
	b.Helper()
	if err := m.Parse(req); err != nil {
		b.Fatal(err)
	}
	return sipmsg.AppendResponse(dst, m, 486, "Busy Here", []byte("x"))
}

func answerOf(req []byte, status, lines, body string) []byte {
	var keep strings.Builder
	keep.WriteString("SIP/2.0 " + status + "\r\n")
	head, _, _ := strings.Cut(string(req), "\r\n\r\n")
	for l := range strings.SplitSeq(head, "\r\n") {
		switch name(l) {
		case "via", "from", "call-id", "cseq", "record-route":
			keep.WriteString(l + "\r\n")
		case "to":
			keep.WriteString(l + ";tag=x\r\n")
		}
	}
	return []byte(withBody(keep.String()+lines, body))
}
