package sipalg

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"edged.dev/edged/pkg/sipalg/flow"
)

// TestHostileCost: no message of 64 KiB costs more than a small one by more than its size: nothing is
// quadratic, and little is kept.
func TestHostileCost(t *testing.T) {
	const size = 60000
	fill := func(format string) string {
		var b strings.Builder
		for i := 0; b.Len() < size; i++ {
			fmt.Fprintf(&b, format, i)
		}
		return b.String()
	}
	body := func(contentType, text string) string {
		return fmt.Sprintf("Content-Type: %s\r\nContent-Length: %d\r\n\r\n%s", contentType, len(text), text)
	}
	const sdp = "v=0\r\no=- 1 1 IN IP4 10.0.0.5\r\ns=-\r\nc=IN IP4 10.0.0.5\r\nt=0 0\r\n"
	for what, rest := range map[string]string{
		"Via":           fill("v: SIP/2.0/UDP h%d;branch=z9hG4bKe0\r\n"),
		"own Via":       fill("v: SIP/2.0/UDP 10.0.0.1;branch=z9hG4bKe00000000%016x\r\n"),
		"Via list":      "Via: " + strings.TrimSuffix(fill("SIP/2.0/UDP h%d,"), ",") + "\r\n",
		"Contact list":  "Contact: " + strings.TrimSuffix(fill("<sip:%d@x>,"), ",") + "\r\n",
		"Route list":    "Route: <sip:10.0.0.1;lr>," + strings.TrimSuffix(fill("<sip:h%d;lr>,"), ",") + "\r\n",
		"Record list":   "Record-Route: " + strings.TrimSuffix(fill("<sip:h%d;lr>,"), ",") + "\r\n",
		"comma list":    "Via: " + strings.Repeat(",", 60000) + "\r\n",
		"own Via list":  "Via: " + strings.TrimSuffix(fill("SIP/2.0/UDP 10.0.0.1;branch=z9hG4bKe00000000%016x,"), ",") + "\r\n",
		"Contact":       fill("m:<sip:%d@x>\r\n"),
		"Contact *":     fill("m:*\r\nm:%d\r\n"),
		"Route":         fill("Route: <sip:h%d;lr>\r\n"),
		"own Route":     fill("Route: <sip:10.0.0.1;lr;e=%016x>\r\n"),
		"Record-Route":  fill("Record-Route: <sip:h%d;lr>\r\n"),
		"Proxy-Require": "Proxy-Require: " + fill("ms-%d,") + "\r\n",
		"short fields":  fill("a:%d\r\n"),
		"folds":         "Subject: x" + fill("\r\n %d") + "\r\n",
		"parameters":    "Contact: <sip:a@b" + fill(";p%d=1") + ">\r\n",
		"m lines":       body("application/sdp", sdp+fill("m=audio %d RTP/AVP 0\r\n")),
		"disabled":      body("application/sdp", sdp+strings.Repeat("m=audio 0 RTP/AVP 0\r\n", 2800)),
		"candidates":    body("application/sdp", sdp+"m=audio 4000 RTP/AVP 0\r\n"+fill("a=candidate:1 1 UDP 1 10.0.0.5 %d typ host\r\n")),
		"attributes":    body("application/sdp", sdp+"m=audio 4000 RTP/AVP 0\r\n"+fill("a=x%d\r\n")),
		"rtcp":          body("application/sdp", sdp+"m=audio 4000 RTP/AVP 0\r\n"+fill("a=rtcp:%d\r\n")),
		"c lines":       body("application/sdp", sdp+"m=audio 4000 RTP/AVP 0\r\n"+strings.Repeat("c=IN IP4 10.0.0.5\r\n", 3000)),
		"one line":      body("application/sdp", sdp+"m=audio 4000 RTP/AVP"+fill(" %d")+"\r\n"),
		"parts":         body("multipart/mixed;boundary=b", fill("--b\r\nContent-Type: application/sdp\r\n\r\nv=%d\r\n")+"--b--\r\n"),
		"empty parts":   body("multipart/mixed;boundary=b", strings.Repeat("--b\r\n\r\n", 8000)+"--b--\r\n"),
		"nested parts":  body("multipart/mixed;boundary=b", fill("--b\r\nContent-Type: multipart/mixed;boundary=b\r\n\r\n%d")+"--b--\r\n"),
		"near boundary": body("multipart/mixed;boundary=bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb", strings.Repeat("--bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb", 1500)),
	} {
		w := newWorld(t, nil)
		w.core.limits.MessagesPerSecond = 0
		w.showsIn = true
		const n = 20
		f := flow.Flow{Conn: 1, Network: "inside", Proto: flow.TCP, Local: ap("10.0.0.1:5060"), Remote: ap("10.0.0.5:40000")}
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		best := time.Hour
		for i := range n {
			if !strings.Contains(rest, "Content-Length") && i == 0 {
				rest += "Content-Length: 0\r\n\r\n"
			}
			raw := fmt.Sprintf("INVITE sip:bob@example.com SIP/2.0\r\nVia: SIP/2.0/TCP 10.0.0.5;branch=z9hG4bK%d\r\nFrom: <sip:a@example.com>;tag=%d\r\nTo: <sip:bob@example.com>\r\nCall-ID: %d\r\nCSeq: 1 INVITE\r\n%s", i, i, i, rest)
			start := time.Now()
			w.out.reset()
			w.core.Receive(w.now, f, []byte(raw), &w.out)
			best = min(best, time.Since(start))
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		kept := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / n
		t.Logf("%-14s %8v, %7d bytes kept, %v", what, best, kept, w.core.drops)
		if best > 30*time.Millisecond {
			t.Errorf("%s: one message takes %v", what, best)
		}
		if kept > 1<<20 {
			t.Errorf("%s: one message leaves %d bytes", what, kept)
		}
	}
}
