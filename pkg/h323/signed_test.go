package h323

import (
	"bytes"
	"testing"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/pkg/h323/h225"
	"edged.dev/edged/pkg/h323/h245"
	"edged.dev/edged/pkg/h323/q931"
)

// hashed are tokens over the whole message (H.235.1 procedure I); of a password's hash over alias and time only.
func hashed(whole bool) per.Field {
	token := per.Fields(per.F("algorithmOID", per.Identifier("1.2.840.113549.2.5")), per.F("paramS", per.Fields()), per.F("hash", per.Octet(make([]byte, 12))))
	if !whole {
		return per.F("cryptoTokens", per.Elements(per.Alternative("cryptoEPPwdHash", per.Fields(
			per.F("alias", h225.H323ID("alice")), per.F("timeStamp", per.Number(1)), per.F("token", token)))))
	}
	return per.F("cryptoTokens", per.Elements(per.Alternative("nestedcryptoToken", per.Alternative("cryptoHashedToken", per.Fields(
		per.F("tokenOID", per.Identifier("0.0.8.235.0.2.1")),
		per.F("hashedVals", per.Fields(per.F("tokenOID", per.Identifier("0.0.8.235.0.2.5")))), per.F("token", token))))))
}

// TestSigned: what a hash covers whole passes octet for octet and is counted, or ends the call, whichever message it
// is; a hash of a password hinders nothing.
func TestSigned(t *testing.T) {
	refuse := func(c *Config, _ *Deps) { c.Signed = SignedRefuse }
	t.Run("setup passes", func(t *testing.T) {
		b, offer := newBench(t, nil), setup(t, 1, aliceAt, "bob", hashed(true))
		far := b.dialled(b.say(b.connect(aliceAt), offer))
		if a := b.out.Actions; len(a) != 1 || a[0].Conn != far || !bytes.Equal(a[0].Data[4:], offer) || b.core.counts.signed != 1 {
			t.Errorf("%d signed, sent %v", b.core.counts.signed, a)
		}
	})
	t.Run("setup refused", func(t *testing.T) {
		b := newBench(t, refuse)
		near := b.connect(aliceAt)
		if m := one(t, b.say(near, setup(t, 1, aliceAt, "bob", hashed(true))), near); m.Type != q931.ReleaseComplete || m.Reason() != "noPermission" {
			t.Errorf("%v %s", m.Type, m.Reason())
		}
		b.empty()
	})
	t.Run("connect refused", func(t *testing.T) {
		b := newBench(t, refuse)
		near, far := b.talk(1, aliceAt)
		actions := b.say(far, connect(t, 1, hashed(true), per.F("h245Address", h245.CallAddress(at(bobAt, 5000)))))
		for _, id := range []ConnID{near, far} {
			if m := one(t, actions, id); m.Type != q931.ReleaseComplete {
				t.Errorf("%v on %d", m.Type, id)
			}
		}
		if b.core.counts.signed != 0 || b.core.counts.refused[refusedSigned] != 1 {
			t.Errorf("%d passed, refused %v", b.core.counts.signed, b.core.counts.refused)
		}
		b.tick(lingerTime)
		b.empty()
	})
	t.Run("password", func(t *testing.T) {
		b := newBench(t, refuse)
		far := b.dialled(b.say(b.connect(aliceAt), setup(t, 1, aliceAt, "bob", hashed(false))))
		for _, a := range one(t, b.out.Actions, far).Addresses(nil) {
			if a.AddrPort.Addr() == aliceAt.Addr() {
				t.Errorf("%s is still %v", a.Field, a.AddrPort)
			}
		}
	})
}
