package sipalg

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/pinhole/pinholetest"
	"edged.dev/edged/pkg/sipalg/flow"
)

// Media in session descriptions of Windows Messenger, Communicator and OCS 2007 R2 (docs/protocols/sip.md).

// ocsOffer is the body of an OCS 2007 R2 caller at 10.0.0.5: in a multipart/mixed the two dialects of ICE, the older
// one without v= and t=, and the call's context.
func ocsOffer(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("testdata/ocs-offer.txt")
	if err != nil {
		t.Fatal(err)
	}
	return crlf(string(b))
}

const ocsType = `multipart/mixed; boundary="outer"`

// offered sends an INVITE with a body of any type and returns what bob gets.
func offered(alice, bob *phone, contentType, body string) *msg {
	alice.w.t.Helper()
	head, _, _ := strings.Cut(alice.dial("sip:bob@example.com").text("INVITE", ""), "Content-Length")
	alice.w.put(alice.proto, alice.addr, alice.first, withType(head, contentType, body))
	return bob.expect("INVITE")
}

// ocsLines are the lines that may differ, by what is done with ICE: everything before the address or port.
var (
	ocsChanged = regexp.MustCompile(`^(o=- 0 0 IN IP4 |c=IN IP4 |m=(audio|video) |a=rtcp:)`)
	ocsICE     = regexp.MustCompile(`^a=(candidate|remote-candidates?|x-candidate-ipv6|ice-ufrag|ice-pwd):`)
)

// TestOCSReplay: an offer with both dialects of ICE loses every inside address in each part, and nothing else.
func TestOCSReplay(t *testing.T) {
	in := ocsOffer(t)
	for _, mode := range []ICEMode{"strip", "relay"} {
		t.Run(string(mode), func(t *testing.T) {
			w := newWorld(t, func(c *Config) { c.ICE = mode })
			alice, bob := w.phone("alice", flow.TCP, "10.0.0.5:45062", "10.0.0.1:5060"), w.bob()
			got := offered(alice, bob, ocsType, in)
			for _, inside := range []string{"10.0.0.", "192.168.", "fd00:"} {
				if strings.Contains(got.body, inside) {
					t.Errorf("%s is left in\n%s", inside, got.body)
				}
			}
			kept := func(body string) (lines []string) {
				for line := range strings.SplitSeq(body, "\r\n") {
					switch {
					case ocsICE.MatchString(line):
					case ocsChanged.MatchString(line):
						lines = append(lines, ocsChanged.FindString(line))
					default:
						lines = append(lines, line)
					}
				}
				return lines
			}
			if a, b := kept(in), kept(got.body); !slices.Equal(a, b) {
				t.Errorf("more than addresses was changed:\n%s", got.body)
			}
			want := map[string]int{"m=audio 50000 RTP/SAVP": 2, "m=video 50002 RTP/AVP": 2, "a=rtcp:50001": 2, "a=rtcp:50003": 2, "c=IN IP4 198.51.100.1": 4, "a=candidate:": 0, "a=ice-pwd": 0}
			if mode == "relay" {
				want["a=candidate:"], want["a=ice-pwd"] = 8, 2
				want["UDP 0.830 198.51.100.1 50000 "], want["UDP 2130706431 198.51.100.1 50000 typ host "] = 1, 1
				want["UDP 0.830 198.51.100.1 50003 "], want["UDP 2130706430 198.51.100.1 50003 typ host "] = 1, 1
			}
			for text, n := range want {
				if c := strings.Count(got.body, text); c != n {
					t.Errorf("%q occurs %d times, want %d, in\n%s", text, c, n, got.body)
				}
			}
			// Both parts share the pinholes; what the newer part says counts.
			leases := w.opener.Leases()
			if len(leases) != 2 {
				t.Fatalf("%d pinholes", len(leases))
			}
			for i, port := range []uint16{31010, 31030} {
				if a := leases[i].Remote(pinhole.Near).Addr; a != netip.AddrPortFrom(netip.MustParseAddr("10.0.0.5"), port) {
					t.Errorf("pinhole %d leads to %v", i, a)
				}
			}
			b := answer(alice, bob, got, bob.media("m=audio 6000 RTP/SAVP 111", "m=video 0 RTP/AVP 121"))
			if n := w.opener.Count(); n != 1 {
				t.Errorf("%d pinholes after the answer", n)
			}
			over(alice, b)
		})
	}
}

// answer takes a call with a description, and returns bob's side.
func answer(alice, bob *phone, req *msg, sdp string) *peer {
	alice.w.t.Helper()
	b := bob.answered(req)
	bob.reply(req, b, 200, sdp)
	for len(alice.inbox) > 0 {
		alice.expect(fmt.Sprint(alice.inbox[0].status))
	}
	return b
}

// over ends a call whose caller made no dialog of it.
func over(alice *phone, b *peer) {
	alice.w.t.Helper()
	b.send("BYE", "")
	alice.reply(alice.expect("BYE"), nil, 200, "")
	b.p.expect("200")
	alice.w.clean()
}

// TestOCSPass: with "pass" the description stays as it is, and so does its answer: a TURN server carries the media. One
// without ICE is relayed all the same.
func TestOCSPass(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.ICE = "pass" })
	w.showsIn = true
	in := ocsOffer(t)
	alice, bob := w.phone("alice", flow.TCP, "10.0.0.5:45062", "10.0.0.1:5060"), w.bob()
	got := offered(alice, bob, ocsType, in)
	if got.body != in {
		t.Errorf("got\n%s", got.body)
	}
	b := bob.answered(got)
	for _, status := range []int{183, 200} {
		bob.reply(got, b, status, bob.sdp(6000))
		if status == 183 {
			alice.expect("100")
		}
		if ok := alice.expect(fmt.Sprint(status)); ok.body != bob.sdp(6000) {
			t.Errorf("got\n%s", ok.body)
		}
	}
	if n := len(w.opener.Leases()); n != 0 {
		t.Errorf("%d pinholes", n)
	}
	carol := w.phone("carol", flow.UDP, "10.0.0.6:5062", "10.0.0.1:5060")
	x, y := carol.call("sip:bob@example.com", bob, carol.sdp(4000), bob.sdp(6000))
	ends(t, w.openLease(), "10.0.0.6:4000", "198.51.100.20:6000")
	x.bye(y)
	over(alice, b)
}

// TestOlderPartIsStub: a client that does not speak the older dialect refuses its media there (port 0), and may leave
// the formats out; the newer part counts.
func TestOlderPartIsStub(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	stub := "o=- 0 0 IN IP4 10.0.0.5\r\ns=session\r\nc=IN IP4 10.0.0.5\r\nm=audio 0 RTP/AVP\r\n"
	part := func(disposition, sdp string) string {
		return "--x\r\nContent-Type: application/sdp\r\nContent-Transfer-Encoding: 7bit\r\nContent-Disposition: session; handling=optional" + disposition + "\r\n\r\n" + sdp + "\r\n"
	}
	got := offered(alice, bob, "multipart/alternative;boundary=x", part("; ms-proxy-2007fallback", stub)+part("", alice.sdp(4000))+"--x--\r\n")
	if !strings.Contains(got.body, "m=audio 0 RTP/AVP\r\n") || !strings.Contains(got.body, "m=audio 50000 RTP/AVP") {
		t.Errorf("got\n%s", got.body)
	}
	b := answer(alice, bob, got, bob.sdp(6000))
	ends(t, w.openLease(), "10.0.0.5:4000", "198.51.100.20:6000")
	over(alice, b)
}

// TestPartsDisagree: a line that only the older part has is rejected there: no pinhole would hear it.
func TestPartsDisagree(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	part := func(sdp string) string { return "--x\r\nContent-Type: application/sdp\r\n\r\n" + sdp + "\r\n" }
	body := part(alice.media("m=audio 4000 TCP/RTP/SAVP 0", "m=video 4002 RTP/AVP 31")) + part(alice.media("m=audio 4004 RTP/SAVP 0")) + "--x--\r\n"
	got := offered(alice, bob, "multipart/alternative;boundary=x", body)
	for _, want := range []string{"m=audio 0 TCP/RTP/SAVP 0\r\n", "m=video 0 RTP/AVP 31\r\n", "m=audio 50000 RTP/SAVP 0\r\n"} {
		if !strings.Contains(got.body, want) {
			t.Errorf("no %q in\n%s", want, got.body)
		}
	}
	if n := w.opener.Count(); n != 1 {
		t.Errorf("%d pinholes", n)
	}
	bob.reply(got, nil, 486, "")
	w.clean()
}

// conferences gives a world a T.120 relay, whose ports are not 1503 so that they are seen in descriptions.
func (w *world) conferences() *pinholetest.Opener {
	o := pinholetest.New(w.core.nets, 1600)
	w.core.conferences = o
	return o
}

const (
	msAudio = "m=audio %d RTP/AVP 97 111 112 6 0 8 4 5 3 101|k=base64:c2VjcmV0|a=encryption:required"
	msData  = "m=application %d tcp msdata|a=sendonly|a=encryption:required"
)

func msOffer(p *phone, audio, data int) string {
	return p.media(strings.Split(fmt.Sprintf(msAudio+"|"+msData, audio, data), "|")...)
}

// TestDataConference: the T.120 line is given the relay's own listener; its hosts are declared there, and withdrawn
// at the end of the call.
func TestDataConference(t *testing.T) {
	w := newWorld(t, nil)
	o := w.conferences()
	alice, bob := w.alice(), w.bob()
	a, b, _, got := ring(alice, bob, msOffer(alice, 4000, 1503))
	for _, want := range []string{"m=audio 50000 RTP", "\r\nk=base64:c2VjcmV0\r\na=encryption:required\r\nm=application 1600 tcp msdata\r\na=sendonly\r\na=encryption:required\r\n", "c=IN IP4 198.51.100.1\r\n"} {
		if !strings.Contains(got.body, want) {
			t.Errorf("no %q in\n%s", want, got.body)
		}
	}
	bob.reply(got, b, 200, msOffer(bob, 6000, 1503))
	ok := alice.expect("200")
	if !strings.Contains(ok.body, "m=application 1600 tcp msdata") || !strings.Contains(ok.body, "c=IN IP4 10.0.0.1") {
		t.Errorf("answer\n%s", ok.body)
	}
	a.learn(ok)
	a.send("ACK", "")
	bob.expect("ACK")
	l := o.Leases()[0]
	ends(t, l, "10.0.0.5:1503", "198.51.100.20:1503")
	for side := pinhole.Near; side <= pinhole.Far; side++ {
		if l.Remote(side).Quiet {
			t.Errorf("side %d is not expected to call", side)
		}
	}
	// The same again: o= never changes, and neither does anything else.
	reinvite(a, b, msOffer(alice, 4000, 1503), msOffer(bob, 6000, 1503))
	if len(o.Leases()) != 1 || w.opener.Count() != 1 {
		t.Errorf("%d conferences, %d pinholes", len(o.Leases()), w.opener.Count())
	}
	a.bye(b)
	if o.Count() != 0 {
		t.Error("the conference is left")
	}
	w.clean()
}

// TestDataConferenceOff: without a relay for T.120 its line is rejected and the rest goes on; alone it is refused.
func TestDataConferenceOff(t *testing.T) {
	for name, o := range map[string]pinhole.Opener{"off": nil, "no listener": failing{pinhole.ErrNetwork}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			w.core.conferences = o
			alice, bob := w.alice(), w.bob()
			a, b, _, got := ring(alice, bob, msOffer(alice, 4000, 1503))
			if !strings.Contains(got.body, "m=audio 50000 ") || !strings.Contains(got.body, "m=application 0 tcp msdata\r\n") {
				t.Errorf("got\n%s", got.body)
			}
			bob.reply(got, b, 200, msOffer(bob, 6000, 1503)) // as if it had not seen the 0
			ok := alice.expect("200")
			if !strings.Contains(ok.body, "m=application 0 tcp msdata\r\n") {
				t.Errorf("got\n%s", ok.body)
			}
			a.learn(ok)
			a.send("ACK", "")
			bob.expect("ACK")
			a.bye(b)
			alice.dial("sip:bob@example.com").send("INVITE", alice.media(strings.Split(fmt.Sprintf(msData, 1503), "|")...))
			alice.expect("488")
			bob.nothing()
			w.clean()
		})
	}
}

type failing struct{ error }

// taken is a relay of T.120 for which hosts are part of another conference.
type taken struct {
	*pinholetest.Opener
	hosts []string
}

func (o taken) Open(ctx context.Context, r pinhole.Request) (pinhole.Lease, error) {
	l, err := o.Opener.Open(ctx, r)
	return takenLease{l, o.hosts}, err
}

type takenLease struct {
	pinhole.Lease
	hosts []string
}

func (l takenLease) Declare(s pinhole.Side, r pinhole.Remote) error {
	if slices.Contains(l.hosts, r.Addr.Addr().String()) {
		return errTakenTest
	}
	return l.Lease.Declare(s, r)
}

// TestDataConferenceTaken: a caller that is in another conference is refused; an answer from such a host rejects the
// line, and the rest of the call goes on.
func TestDataConferenceTaken(t *testing.T) {
	w := newWorld(t, nil)
	o := pinholetest.New(w.core.nets, 1600)
	w.core.conferences = taken{o, []string{"10.0.0.5"}}
	alice, bob := w.alice(), w.bob()
	alice.dial("sip:bob@example.com").send("INVITE", msOffer(alice, 4000, 1503))
	alice.expect("488")
	bob.nothing()
	if o.Count() != 0 || w.opener.Count() != 0 {
		t.Errorf("%d conferences and %d pinholes are left", o.Count(), w.opener.Count())
	}
	w.core.conferences = taken{o, []string{"198.51.100.20"}}
	a, b, _, got := ring(alice, bob, msOffer(alice, 4000, 1503))
	bob.reply(got, b, 200, msOffer(bob, 6000, 1503))
	ok := alice.expect("200")
	if !strings.Contains(ok.body, "m=application 0 tcp msdata\r\n") || !strings.Contains(ok.body, "m=audio 50002 ") {
		t.Errorf("got\n%s", ok.body)
	}
	if o.Count() != 0 {
		t.Error("the conference is left")
	}
	a.learn(ok)
	a.send("ACK", "")
	bob.expect("ACK")
	a.bye(b)
	w.clean()
}

// TestMessengerSample: audio, video and whiteboard as a real Messenger wrote them, RTCP far from its port, keys untouched.
func TestMessengerSample(t *testing.T) {
	dir := os.Getenv("EDGED_CORPORA")
	if dir == "" {
		dir = "../../../shared/corpora"
	}
	raw, err := os.ReadFile(filepath.Join(dir, "ms-sip/ms-sdp-av-t120.sdp"))
	if err != nil {
		t.Skipf("no corpus: %v", err)
	}
	in := crlf(strings.ReplaceAll(string(raw), "157.59.134.89", "10.0.0.5"))
	w := newWorld(t, nil)
	o := w.conferences()
	alice, bob := w.alice(), w.bob()
	_, b, _, got := ring(alice, bob, in)
	want := strings.NewReplacer("IN IP4 10.0.0.5", "IN IP4 198.51.100.1", "audio 56472", "audio 50000", "video 33792", "video 50002",
		"a=rtcp:33801", "a=rtcp:50003", "application 1503", "application 1600").Replace(in)
	if got.body != want {
		t.Errorf("got\n%s", got.body)
	}
	if r := w.opener.Leases()[1].Remote(pinhole.Near); r.RTCP != ap("10.0.0.5:33801") {
		t.Errorf("RTCP goes to %v", r.RTCP)
	}
	bob.reply(got, b, 488, "", `Warning: 308 bob.example.org "Encryption Levels not compatible"`)
	refused := alice.expect("488")
	if !hasLine(refused, `Warning: 308 bob.example.org "Encryption Levels not compatible"`) {
		t.Errorf("got\n%s", refused.raw)
	}
	if o.Count() != 0 {
		t.Error("the conference is left")
	}
	w.clean()
}

// TestNotMedia: the port of an instant message session opens nothing, in either spelling, and no address is left.
func TestNotMedia(t *testing.T) {
	for _, line := range []string{"m=x-ms-message 5060 sip null", "m=message 5060 sip sip:bob@example.com"} {
		w := newWorld(t, nil)
		alice, bob := w.alice(), w.bob()
		_, b, _, got := ring(alice, bob, alice.media(line))
		if !strings.Contains(got.body, line+"\r\n") || !strings.Contains(got.body, "c=IN IP4 198.51.100.1\r\n") || len(w.opener.Leases()) != 0 {
			t.Errorf("%d pinholes for\n%s", len(w.opener.Leases()), got.body)
		}
		bob.reply(got, b, 486, "")
		w.clean()
	}
}

var errTakenTest = errors.New("taken")

// Open implements [pinhole.Opener].
func (f failing) Open(context.Context, pinhole.Request) (pinhole.Lease, error) { return nil, f.error }
