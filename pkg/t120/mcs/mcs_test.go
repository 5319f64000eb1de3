package mcs

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"edged.dev/edged/internal/tpkt/tpkttest"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const (
	params = "301a 020122 020102 020100 020101 020100 020101 020300ffff 020102"
)

// connectInitial is that of xfreerdp without its user data.
func connectInitial(t testing.TB, user []byte) []byte {
	body := unhex(t, "040101 040101 0101ff"+strings.Repeat(params, 3))
	return appendElement(nil, []byte{0x7f, 0x65}, appendElement(body, []byte{4}, user))
}

func connectResponse(t testing.TB, result string, user []byte) []byte {
	body := unhex(t, "0a01"+result+"020105"+params)
	return appendElement(nil, []byte{0x7f, 0x66}, appendElement(body, []byte{4}, user))
}

func TestConnect(t *testing.T) {
	want := DomainParameters{34, 2, 0, 1, 0, 1, 65535, 2}
	in := connectInitial(t, bytes.Repeat([]byte{7}, 300))
	c, err := ParseConnect(in)
	if err != nil || c.Kind != ConnectInitial || !c.Upward || c.Target != want || c.Minimum != want || c.Maximum != want || len(c.UserData) != 300 || !bytes.Equal(c.Called, []byte{1}) {
		t.Errorf("%+v, %v", c, err)
	}
	r, err := ParseConnect(connectResponse(t, "00", []byte("user")))
	if err != nil || r.Result != Successful || r.ConnectID != 5 || r.Target != want || string(r.UserData) != "user" {
		t.Errorf("%+v, %v", r, err)
	}
	a, err := ParseConnect(unhex(t, "7f67 06 020105 0a0102"))
	if err != nil || a.ConnectID != 5 || a.Priority != 2 {
		t.Errorf("%+v, %v", a, err)
	}
	z, err := ParseConnect(unhex(t, "7f68 03 0a010f"))
	if err != nil || z.Result != UserRejected {
		t.Errorf("%+v, %v", z, err)
	}
	if no, err := ParseConnect(c.Refuse(UserRejected)); err != nil || no.Kind != ConnectResponse || no.Result != UserRejected || no.Target != want {
		t.Errorf("refused with %+v, %v", no, err)
	}
	if no, err := ParseConnect(a.Refuse(UnspecifiedFailure)); err != nil || no.Kind != ConnectResult || no.Result != UnspecifiedFailure {
		t.Errorf("refused with %+v, %v", no, err)
	}
}

func TestWithUserData(t *testing.T) {
	for _, n := range []int{0, 1, 20, 127, 128, 255, 256, 1000} {
		in := connectInitial(t, []byte("before"))
		c, err := ParseConnect(in)
		if err != nil {
			t.Fatal(err)
		}
		user := bytes.Repeat([]byte{9}, n)
		out, err := ParseConnect(c.WithUserData(in, user))
		if err != nil || !bytes.Equal(out.UserData, user) || out.Maximum != c.Maximum {
			t.Errorf("%d octets: %+v, %v", n, out, err)
		}
	}
	if same := connectResponse(t, "00", []byte("x")); !bytes.Equal(must(t, same).WithUserData(same, []byte("x")), same) {
		t.Error("the same user data changed the PDU")
	}
}

func must(t testing.TB, b []byte) Connect {
	t.Helper()
	c, err := ParseConnect(b)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestRefused(t *testing.T) {
	good := connectInitial(t, []byte("user"))
	for _, tc := range []struct {
		name string
		in   []byte
		err  error
	}{
		{"empty", nil, ErrTag},
		{"another tag", unhex(t, "7f69 00"), ErrTag},
		{"not BER", unhex(t, "0400"), ErrTag},
		{"indefinite", unhex(t, "7f65 80"), ErrLength},
		{"ffffffff", unhex(t, "7f65 84 ffffffff"), ErrLength},
		{"five octets", unhex(t, "7f65 85 0000000001"), ErrLength},
		{"cut", good[:len(good)-1], ErrLength},
		{"more", append(slices.Clone(good), 0), ErrLength},
		{"selector overruns", unhex(t, "7f65 04 047f0101"), ErrLength},
		{"number of nine octets", unhex(t, "7f67 0e 0209010101010101010101 0a0100"), ErrLength},
		{"number of no octets", unhex(t, "7f67 05 0200 0a0100"), ErrLength},
		{"nothing in it", unhex(t, "7f65 00"), ErrLength},
		{"a parameter too many", unhex(t, "7f66 26 0a0100 020100 301d"+params[4:]+"020100 0400"), ErrLength},
	} {
		if c, err := ParseConnect(tc.in); !errors.Is(err, tc.err) {
			t.Errorf("%s: %+v, %v; want %v", tc.name, c, err, tc.err)
		}
	}
}

func TestSendData(t *testing.T) {
	for _, tc := range []struct {
		in         string
		channel    uint16
		begin, end bool
		ok         bool
	}{
		{"64 0006 03eb 70 01 00", 0x3eb, true, true, true},
		{"68 0006 0001 70 01 00", 1, true, true, true},
		{"70 0006 0001 60 01 00", 1, true, false, true},
		{"6c 0006 0001 50 01 00", 1, false, true, true},
		{"38 0007 03f0 00 00 00", 0, false, false, false},
		{"64 0006 03eb 70", 0, false, false, false},
	} {
		b := unhex(t, tc.in)
		got, ok := ParseSendData(b)
		if got.Channel != tc.channel || got.Begin != tc.begin || got.End != tc.end || ok != tc.ok {
			t.Errorf("%s: %+v, %v", tc.in, got, ok)
		}
		if !ok {
			continue
		}
		if back := got.AppendSegment(nil, b[7:], got.Begin, got.End); !bytes.Equal(back, b) {
			t.Errorf("%s written as %x", tc.in, back)
		}
	}
}

// TestCorpora reads the connect PDUs of real programs; one file of a test suite is cut short and is refused.
func TestCorpora(t *testing.T) {
	dir := tpkttest.Corpora(t, "../../..", "t120")
	for name, err := range map[string]error{
		"redemption-mcs--TestReceive_MCSPDU_CONNECT_INITIAL_with_factory-1.bin":  nil,
		"redemption-mcs--TestReceive_MCSPDU_CONNECT_RESPONSE_with_factory-1.bin": nil,
		"redemption-mcs--TestSend_MCSPDU_CONNECT_RESPONSE_large_payload-1.bin":   ErrLength,
	} {
		b, e := os.ReadFile(filepath.Join(dir, name))
		if e != nil {
			t.Fatal(e)
		}
		c, got := ParseConnect(b)
		if !errors.Is(got, err) || err == nil && (c.Target.ProtocolVersion != 2 || len(c.UserData) == 0) {
			t.Errorf("%s: %+v, %v", name, c, got)
		}
	}
}

// FuzzMCS reads arbitrary octets: no panic, and other user data leaves the rest as it was.
func FuzzMCS(f *testing.F) {
	f.Add(connectInitial(f, []byte("user")), []byte("other"))
	f.Add(connectResponse(f, "0f", nil), bytes.Repeat([]byte{1}, 300))
	f.Add(unhex(f, "7f6706 020105 0a0102"), []byte{})
	f.Add(unhex(f, "7f6803 0a010f"), []byte{})
	f.Add(unhex(f, "64000603eb700100"), []byte{})
	f.Fuzz(func(t *testing.T, b, user []byte) {
		ParseSendData(b)
		c, err := ParseConnect(b)
		if err != nil {
			return
		}
		no, err := ParseConnect(c.Refuse(UserRejected))
		if c.Kind == ConnectInitial && (err != nil || no.Target != c.Target) {
			t.Fatalf("%x: refused with %+v, %v", b, no, err)
		}
		if c.Kind != ConnectInitial && c.Kind != ConnectResponse || len(user)+len(b) > 60000 {
			return
		}
		out, err := ParseConnect(c.WithUserData(b, user))
		if err != nil || !bytes.Equal(out.UserData, user) || out.Target != c.Target || !bytes.Equal(out.Called, c.Called) {
			t.Fatalf("%x with %x: %+v, %v", b, user, out, err)
		}
	})
}
