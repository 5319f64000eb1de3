//go:build lab

package lab

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/internal/tpkt"
	"edged.dev/edged/pkg/h323/h225"
	"edged.dev/edged/pkg/h323/h245"
	"edged.dev/edged/pkg/h323/q931"
)

// signedSetup is a Setup whose hash covers all of it (H.235.1 procedure I).
func signedSetup(t *testing.T, from *Host) []byte {
	t.Helper()
	id := bytes.Repeat([]byte{7}, 16)
	none := func(names ...string) (f []per.Field) {
		for _, n := range names {
			f = append(f, per.F(n, per.Truth(false)))
		}
		return f
	}
	hash := per.Fields(per.F("algorithmOID", per.Identifier("1.2.840.113549.2.5")), per.F("paramS", per.Fields()), per.F("hash", per.Octet(make([]byte, 12))))
	b, err := h225.Build(nil, q931.Setup, 7, false, nil, h225.Info(h225.Setup, per.Fields(append(
		none("activeMC", "mediaWaitForConnect", "canOverlapSend", "multipleCalls", "maintainConnection"),
		per.F("protocolIdentifier", per.Identifier("0.0.8.2250.0.4")),
		per.F("sourceInfo", per.Fields(append(none("mc", "undefinedNode"), per.F("terminal", per.Fields()))...)),
		per.F("destinationAddress", per.Elements(h225.H323ID("bob"))), per.F("conferenceID", per.Octet(id)),
		per.F("conferenceGoal", per.Alternative("create", per.Nothing())), per.F("callType", per.Alternative("pointToPoint", per.Nothing())),
		per.F("sourceCallSignalAddress", h245.CallAddress(from.Addr(4, callPort))), per.F("callIdentifier", per.Fields(per.F("guid", per.Octet(id)))),
		per.F("cryptoTokens", per.Elements(per.Alternative("nestedcryptoToken", per.Alternative("cryptoHashedToken", per.Fields(
			per.F("tokenOID", per.Identifier("0.0.8.235.0.2.1")),
			per.F("hashedVals", per.Fields(per.F("tokenOID", per.Identifier("0.0.8.235.0.2.5")))), per.F("token", hash))))),
		))...)))
	must(t, "Setup", err)
	return b
}

// TestH323Signed: a Setup with an H.235 hash over all of it reaches the called party octet for octet, or the caller is
// refused, as the policy says.
func TestH323Signed(t *testing.T) {
	for _, policy := range []string{"pass", "refuse"} {
		t.Run(policy, func(t *testing.T) {
			r := lab(t)
			onlyEdged(t, "the reference has no H.323")
			in, out := r.Inside("in1"), r.Outside("out1")
			e := r.Edge(t, EdgeConfig{More: fmt.Sprintf("h323: {listen: %s, aliases: {bob: %q}, signed: %s}\n", h323Listen, out.IP, policy)})
			var ln *net.TCPListener
			must(t, "listen", out.Do(func() (err error) {
				ln, err = net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(out.Addr(4, callPort)))
				return err
			}))
			defer ln.Close()
			var c net.Conn
			must(t, "dial", in.Do(func() (err error) {
				c, err = net.DialTimeout("tcp4", netip.AddrPortFrom(r.GW.IPOn(inside, 4), callPort).String(), h323Time)
				return err
			}))
			defer c.Close()
			said := signedSetup(t, in)
			b, err := tpkt.Append(nil, 0, said)
			must(t, "TPKT", err)
			_, err = c.Write(b)
			must(t, "say", err)
			if policy == "refuse" {
				got, err := receiveTPKT(c)
				must(t, "the answer", err)
				m, err := h225.NewCodec().Decode(got)
				if err != nil || m.Type != q931.ReleaseComplete || m.Reason() != "noPermission" {
					t.Errorf("%v %s, %v", m.Type, m.Reason(), err)
				}
				return
			}
			_ = ln.SetDeadline(time.Now().Add(h323Time))
			far, err := ln.Accept()
			must(t, "the edge's connection", err)
			defer far.Close()
			got, err := receiveTPKT(far)
			must(t, "the Setup", err)
			if !bytes.Equal(got, said) {
				t.Errorf("sent %x, arrives %x", said, got)
			}
			if n := e.Metric("edged_h323_signed_messages_total"); n != 1 {
				t.Errorf("%v signed messages counted", n)
			}
		})
	}
}
