package trace

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

const offer = "v=0\r\no=- 1 1 IN IP4 192.0.2.7\r\nc=IN IP4 192.0.2.7\r\nm=audio 4000 RTP/SAVP 0\r\n" +
	"a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmV0|2^31\r\na=ice-pwd:verysecretverysecret\r\n"

// request makes a message of a call; addr is what rewriting changes in it.
func request(method, callID, addr string) []byte {
	return []byte(method + " sip:bob@example.org SIP/2.0\r\nVia: SIP/2.0/UDP " + addr + "\r\nFrom: <sip:alice@example.org>;tag=1\r\n" +
		"To: <sip:bob@example.org>\r\ni: " + callID + "\r\nCSeq: 7 " + method + "\r\n" +
		"Proxy-Authorization: Digest username=\"alice\", response=\"0123456789abcdef\", nonce=\"n\"\r\n\r\n" + offer)
}

func response(status, callID, addr string) []byte {
	return []byte("SIP/2.0 " + status + "\r\nVia: SIP/2.0/UDP " + addr + "\r\nCall-ID: " + callID + "\r\nCSeq: 7 INVITE\r\n\r\n")
}

func message(out bool, remote string, data []byte) Message {
	return Message{
		Time: time.Unix(1, 0), Out: out, Network: "inside", Transport: "udp", Local: netip.MustParseAddrPort("192.0.2.1:5060"),
		Remote: netip.MustParseAddrPort(remote), Data: data,
	}
}

// TestTrace passes one call with a retransmission and the edge's own 100 through the ring.
func TestTrace(t *testing.T) {
	const alice, bob = "192.0.2.7:5060", "198.51.100.9:5060"
	r := New(1 << 20)
	for range 2 {
		r.Add(message(false, alice, request("INVITE", "c1", "192.0.2.7")))
	}
	r.Add(message(true, alice, response("100 Trying", "c1", "192.0.2.7")))
	r.Add(message(true, bob, request("INVITE", "c1", "203.0.113.1")))
	r.Add(message(false, bob, response("486 Busy Here", "c1", "203.0.113.1")))
	r.Add(message(true, alice, response("486 Busy Here", "c1", "192.0.2.7")))
	r.Name("c1", "e1")
	tr, ok := r.Trace("e1", 0, false)
	if !ok || len(tr.Messages) != 6 || tr.CallID != "c1" || tr.From != "<sip:alice@example.org>;tag=1" || len(tr.IDs) != 1 {
		t.Fatalf("%v %+v", ok, tr)
	}
	if fmt.Sprint(tr.Parties) != "["+alice+" "+bob+"]" {
		t.Errorf("parties %v", tr.Parties)
	}
	var got []string
	for _, e := range tr.Messages {
		got = append(got, fmt.Sprint(e.Direction, " ", e.Summary, " of ", e.Of, " ", e.Repeat))
	}
	want := "in INVITE sip:bob@example.org of 0 false;in INVITE sip:bob@example.org of 0 true;out 100 Trying of 0 false;" +
		"out INVITE sip:bob@example.org of 2 false;in 486 Busy Here of 0 false;out 486 Busy Here of 5 false"
	if strings.Join(got, ";") != want {
		t.Errorf("got  %s\nwant %s", strings.Join(got, ";"), want)
	}
	var changed []Line
	for _, l := range tr.Messages[3].Diff {
		if l.Op != "=" {
			changed = append(changed, l)
		}
	}
	if fmt.Sprint(changed) != "[{- Via: SIP/2.0/UDP 192.0.2.7} {+ Via: SIP/2.0/UDP 203.0.113.1}]" {
		t.Errorf("difference: %v", changed)
	}
	if later, _ := r.Trace("c1", 4, false); len(later.Messages) != 2 || len(later.Parties) != 2 {
		t.Errorf("after 4: %+v", later.Messages)
	}
	if list := r.List(); len(list) != 1 || list[0].Status != 486 || list[0].Messages != 6 {
		t.Errorf("list: %+v", list)
	}
}

func TestSecretsAreMasked(t *testing.T) {
	r := New(1 << 20)
	data := request("INVITE", "c1", "192.0.2.7")
	data = append(data, "a=candidate:ufrag 1 oldpasswordoldpassword UDP 0.8 192.0.2.7 4000\r\nAuthCookie: 4242424242\r\n<password>mras-secret</password>\r\n"...)
	r.Add(message(false, "192.0.2.7:5060", data))
	tr, _ := r.Trace("c1", 0, false)
	text := tr.Messages[0].Text
	for _, secret := range []string{"0123456789abcdef", "c2VjcmV0", "verysecret", "oldpassword", "4242", "mras-secret"} {
		if strings.Contains(text, secret) {
			t.Errorf("%s is shown:\n%s", secret, text)
		}
	}
	if len(text) != len(data) || !strings.Contains(text, `nonce="n"`) || !strings.Contains(text, "|2^31") {
		t.Errorf("too much is masked:\n%s", text)
	}
	if tr, _ = r.Trace("c1", 0, true); tr.Messages[0].Text != string(data) {
		t.Error("secrets were asked for, and are not there")
	}
}

// TestMemoryIsBounded has strangers knock with INVITEs that are never sent on, while one call is up.
func TestMemoryIsBounded(t *testing.T) {
	const memory = 256 << 10
	r := New(memory)
	r.Add(message(false, "192.0.2.7:5060", request("INVITE", "good", "192.0.2.7")))
	r.Add(message(true, "198.51.100.9:5060", request("INVITE", "good", "203.0.113.1")))
	for i := range 5000 {
		r.Add(message(false, "198.51.100.66:5060", request("INVITE", fmt.Sprint("bad", i), "198.51.100.66")))
		r.Name(fmt.Sprint("bad", i), fmt.Sprint("e", i))
	}
	used, dialogs := r.Used()
	if used > memory || dialogs < 10 {
		t.Errorf("%d bytes and %d dialogs are held", used, dialogs)
	}
	if _, ok := r.Trace("good", 0, false); !ok {
		t.Error("a flood has pushed a call out")
	}
	if _, ok := r.Trace("bad0", 0, false); ok {
		t.Error("what came first is still there")
	}
	for range 5000 { // one call that talks without end
		r.Add(message(false, "192.0.2.7:5060", request("INFO", "good", "192.0.2.7")))
	}
	tr, _ := r.Trace("good", 0, false)
	if used, _ := r.Used(); used > memory || tr.Dropped == 0 || len(tr.Messages)+tr.Dropped != 5002 {
		t.Errorf("%d bytes, %d messages, %d dropped", used, len(tr.Messages), tr.Dropped)
	}
	for i := range 5000 { // calls one after the other
		r.Add(message(true, "198.51.100.9:5060", request("INVITE", fmt.Sprint("next", i), "203.0.113.1")))
	}
	if used, dialogs := r.Used(); used > memory || len(r.names) > dialogs {
		t.Errorf("%d bytes, %d dialogs, %d names", used, dialogs, len(r.names))
	}
	if _, ok := r.Trace("next4999", 0, false); !ok {
		t.Error("the last call is missing")
	}
}

func TestNilRingHoldsNothing(t *testing.T) {
	r := New(0)
	r.Add(message(false, "192.0.2.7:5060", request("INVITE", "c1", "192.0.2.7")))
	r.Name("c1", "e1")
	if _, ok := r.Trace("c1", 0, false); ok || len(r.List()) != 0 {
		t.Error("it holds something")
	}
}

func TestDiffOfLongTexts(t *testing.T) {
	a, b := strings.Repeat("a\n", 10000), strings.Repeat("b\n", 10000)
	if n := len(Diff(a+"end", b+"end")); n != 20001 {
		t.Errorf("%d lines", n)
	}
}

// FuzzRing: what a stranger sends is kept within bounds and shown as it came, but for secrets.
func FuzzRing(f *testing.F) {
	f.Add(request("INVITE", "c", "192.0.2.7"))
	f.Add(response("200 OK", "c", "192.0.2.7"))
	f.Add([]byte("SIP/2.0 \r\nCall-ID\r\n:\n i:1\nCSeq: "))
	f.Fuzz(func(t *testing.T, data []byte) {
		before := bytes.Clone(data)
		r := New(MinMemory)
		r.Add(message(false, "192.0.2.7:5060", data))
		r.Add(message(true, "192.0.2.8:5060", data))
		for _, s := range r.List() {
			tr, ok := r.Trace(s.CallID, 0, true)
			if !ok || len(tr.Messages) != 2 {
				t.Fatalf("%q is listed, but not there: %+v", s.CallID, tr)
			}
			if !strings.HasPrefix(string(data), tr.Messages[0].Text) {
				t.Fatal("shown otherwise than it came")
			}
			r.Trace(s.CallID, 0, false)
		}
		if !bytes.Equal(data, before) {
			t.Fatal("changed")
		}
	})
}

// plainReader reads messages of "KIND rest" with the secret "s3".
type plainReader struct{}

func (plainReader) Read(protocol string, data []byte) Reading {
	kind, _, _ := strings.Cut(string(data), " ")
	return Reading{Method: kind, Summary: protocol + " " + string(data), Text: strings.ReplaceAll(string(data), " ", "\n")}
}

func (plainReader) Hide(_ string, data []byte) []byte {
	return bytes.ReplaceAll(data, []byte("s3"), []byte("**"))
}

// TestOtherProtocols: what is not SIP says itself where it belongs, and is read by the reader.
func TestOtherProtocols(t *testing.T) {
	r := New(MinMemory)
	r.ReadWith(plainReader{})
	add := func(out, placed bool, remote, protocol, text string) {
		r.Add(Message{
			Time: time.Now(), Out: out, Placed: placed, Protocol: protocol, Call: "id1", Kind: "SETUP", From: "alice", To: "bob", Network: "inside",
			Transport: "tcp", Remote: netip.MustParseAddrPort(remote), Data: []byte(text),
		})
	}
	add(false, false, "192.0.2.7:1720", "h225", "SETUP at 192.0.2.7 s3")
	add(true, true, "198.51.100.9:1720", "h225", "SETUP at 198.51.100.1 s3")
	add(false, false, "192.0.2.7:3000", "h245", "OLC 1")
	tr, ok := r.Trace("id1", 0, false)
	if !ok || tr.From != "alice" || tr.To != "bob" || len(tr.Messages) != 3 || len(tr.Parties) != 2 {
		t.Fatalf("%v, %+v", ok, tr)
	}
	first, second, third := tr.Messages[0], tr.Messages[1], tr.Messages[2]
	if first.Method != "SETUP" || first.Protocol != "h225" || strings.Contains(first.Text, "s3") || first.Summary != "h225 SETUP at 192.0.2.7 **" {
		t.Errorf("%+v", first)
	}
	if second.Of != first.Seq || !slices.Contains(second.Diff, Line{"-", "192.0.2.7"}) || !slices.Contains(second.Diff, Line{"+", "198.51.100.1"}) {
		t.Errorf("%+v", second)
	}
	if third.Remote != tr.Parties[0] || third.Of != 0 {
		t.Errorf("%+v, parties %v", third, tr.Parties)
	}
	if l := r.List(); len(l) != 1 || l[0].Method != "SETUP" || l[0].From != "alice" || l[0].Messages != 3 {
		t.Errorf("%+v", l)
	}
}

// TestCutOffSecrets: of what is cut off, and cannot be read for that, no secret is shown.
func TestCutOffSecrets(t *testing.T) {
	r := New(1 << 20)
	r.ReadWith(plainReader{})
	r.Add(Message{Time: time.Now(), Protocol: "h225", Call: "id1", Kind: "SETUP", Data: []byte("SETUP big unreadable key " + strings.Repeat("x", maxData))})
	msgs, ok := r.Messages("id1", 0, false)
	if !ok || len(msgs[0].Data) != maxData || !bytes.HasPrefix(msgs[0].Data, []byte("SETUP big\x00")) || bytes.ContainsAny(msgs[0].Data, "kx") {
		t.Errorf("%q", msgs[0].Data[:40])
	}
	if msgs, _ = r.Messages("id1", 0, true); !bytes.Contains(msgs[0].Data, []byte("key")) {
		t.Error("secrets were asked for, and are not there")
	}
}
