package proxydial

import (
	"encoding/base64"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseChallenges(t *testing.T) {
	for _, c := range []struct {
		name   string
		values []string
		want   []challenge
	}{
		{"one each", []string{"Negotiate", "NTLM", `Basic realm="a, b"`}, []challenge{
			{"negotiate", "", map[string]string{}}, {"ntlm", "", map[string]string{}}, {"basic", "", map[string]string{"realm": "a, b"}}}},
		{"all in one line", []string{`Negotiate, NTLM, Digest realm="x", nonce="n\"q", qop="auth,auth-int", stale=TRUE, Basic realm=y`}, []challenge{
			{"negotiate", "", map[string]string{}}, {"ntlm", "", map[string]string{}},
			{"digest", "", map[string]string{"realm": "x", "nonce": `n"q`, "qop": "auth,auth-int", "stale": "TRUE"}},
			{"basic", "", map[string]string{"realm": "y"}}}},
		{"token", []string{"NTLM TlRMTVNTUAACAAAA==", "Negotiate abc/+= , Basic"}, []challenge{
			{"ntlm", "TlRMTVNTUAACAAAA==", map[string]string{}}, {"negotiate", "abc/+=", map[string]string{}}, {"basic", "", map[string]string{}}}},
		{"damaged", []string{`Digest realm="open`, "", ",,", "=", `Basic`}, []challenge{
			{"digest", "", map[string]string{}}, {"basic", "", map[string]string{}}}},
	} {
		got := parseChallenges(c.values)
		if d := cmp.Diff(c.want, got, cmp.AllowUnexported(challenge{})); d != "" {
			t.Errorf("%s: %s", c.name, d)
		}
	}
}

// TestDigestVectors has the examples of RFC 7616 §3.9.1 and RFC 2069 §2.4 (as its errata 749 corrects it).
func TestDigestVectors(t *testing.T) {
	rfc7616 := func(algorithm string) challenge {
		return challenge{scheme: digest, params: map[string]string{"realm": "http-auth@example.org", "qop": "auth, auth-int",
			"algorithm": algorithm, "nonce": "7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", "opaque": "FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"}}
	}
	for _, c := range []struct {
		name           string
		c              challenge
		user, password string
		uri, response  string
	}{
		{"MD5", rfc7616("MD5"), "Mufasa", "Circle of Life", "/dir/index.html", "8ca523f5e9506fed4657c9700eebdbec"},
		{"SHA-256", rfc7616("SHA-256"), "Mufasa", "Circle of Life", "/dir/index.html", "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"},
		{"RFC 2069", challenge{params: map[string]string{"realm": "testrealm@host.com", "nonce": "dcd98b7102dd2f0e8b11d0f600bfb0c093", "opaque": "5ccc069c403ebaf9f0171e9517f40e41"}},
			"Mufasa", "CircleOfLife", "/dir/index.html", "1949323746fe6a43ef61f9606e7febea"},
	} {
		l := &digestLogin{user: c.user, password: c.password, cnonce: "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ"}
		got, more, err := l.answer(t.Context(), c.c, "GET", c.uri)
		if err != nil || more || !strings.Contains(got, `response="`+c.response+`"`) {
			t.Errorf("%s: %s, %v, %v", c.name, got, more, err)
		}
	}
}

func TestDigestRefusesWhatItCannot(t *testing.T) {
	for _, params := range []map[string]string{
		{"nonce": "n", "algorithm": "SHA-512-256"},
		{"nonce": "n", "qop": "auth-int"},
		{"realm": "r"},
		{"nonce": "n\r\nX: y"},
	} {
		l := &digestLogin{user: "u", password: "p"}
		if got, _, err := l.answer(t.Context(), challenge{params: params}, "GET", "/"); err == nil {
			t.Errorf("%v: answered %s", params, got)
		}
	}
}

func TestMendChallenge(t *testing.T) {
	badName := ntlmChallenge()
	binary.LittleEndian.PutUint32(badName[16:], 0xaaaaaaae) // as squid's ntlm_fake_auth sends it
	noInfo := append([]byte(nil), badName[:40]...)
	binary.LittleEndian.PutUint32(noInfo[20:], 0x00008205)
	withName := append(append([]byte(nil), noInfo...), "WORKGROUP"...)
	for name, msg := range map[string][]byte{"target name outside": badName, "no target information": noInfo, "the name in its place": withName} {
		l := ntlmLogin{"alice", "secret"}
		value, more, err := l.answer(t.Context(), challenge{scheme: ntlm, token: base64.StdEncoding.EncodeToString(msg)}, "", "")
		if err != nil || more || !strings.HasPrefix(value, "NTLM ") {
			t.Errorf("%s: %q, %v, %v", name, value, more, err)
		}
	}
}

// ntlmChallenge is a well-formed challenge message with target information.
func ntlmChallenge() []byte {
	msg := append([]byte("NTLMSSP\x00"), make([]byte, 48)...)
	le := binary.LittleEndian
	le.PutUint32(msg[8:], 2)
	le.PutUint16(msg[12:], 4)
	le.PutUint16(msg[14:], 4)
	le.PutUint32(msg[16:], 56)
	le.PutUint32(msg[20:], 0xa2898205)
	copy(msg[24:], "challeng")
	info := []byte{2, 0, 2, 0, 'D', 0, 0, 0, 0, 0}
	le.PutUint16(msg[40:], uint16(len(info)))
	le.PutUint16(msg[42:], uint16(len(info)))
	le.PutUint32(msg[44:], 60)
	return append(append(msg, 'D', 0, 'D', 0), info...)
}

func FuzzChallenges(f *testing.F) {
	f.Add(`Digest realm="x", nonce="n\"q", qop="auth,auth-int", stale=TRUE, Basic realm=y`)
	f.Add("Negotiate abc/+= , Basic")
	f.Add(`a b="`)
	f.Fuzz(func(t *testing.T, s string) {
		got := parseChallenges([]string{s})
		if len(got) > maxChallenges {
			t.Fatalf("%d challenges", len(got))
		}
		for _, c := range got {
			if c.scheme == "" || len(c.params) > maxParams {
				t.Fatalf("%+v", c)
			}
		}
	})
}

func FuzzNTLMChallenge(f *testing.F) {
	f.Add(ntlmChallenge())
	f.Fuzz(func(t *testing.T, msg []byte) {
		l := ntlmLogin{"alice", "secret"}
		_, _, _ = l.answer(t.Context(), challenge{scheme: ntlm, token: base64.StdEncoding.EncodeToString(msg)}, "", "")
	})
}
