package gcc

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/internal/per/schema"
	"edged.dev/edged/internal/tpkt/tpkttest"
	"edged.dev/edged/pkg/t120/mcs"
)

var (
	inside = netip.MustParseAddr("10.77.1.2")
	public = netip.MustParseAddr("198.51.100.1")
)

// hide puts the public address in the place of the inside one.
func hide(a netip.Addr) (netip.Addr, bool) { return public, a == inside }

func encode(t testing.TB, typ per.TypeID, v per.Value) []byte {
	t.Helper()
	b, err := schema.Tables().Encode(nil, typ, v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// connectData wraps a ConnectGCCPDU as the user data of a connect PDU.
func connectData(t testing.TB, name string, fields ...per.Field) []byte {
	t.Helper()
	return encode(t, schema.T124ConnectData, per.Fields(
		per.F("t124Identifier", per.Alternative("object", per.Identifier("0.0.20.124.0.1"))),
		per.F("connectPDU", per.Encoded(per.Alternative(name, per.Fields(fields...)))),
	))
}

func name(numeric, text string) per.Value {
	if text == "" {
		return per.Fields(per.F("numeric", per.Text(numeric)))
	}
	return per.Fields(per.F("numeric", per.Text(numeric)), per.F("text", per.Text(text)))
}

func createRequest(t testing.TB, conference per.Value, caller string) []byte {
	t.Helper()
	return connectData(t, "conferenceCreateRequest",
		per.F("conferenceName", conference), per.F("lockedConference", per.Truth(false)), per.F("listedConference", per.Truth(true)),
		per.F("conductibleConference", per.Truth(false)), per.F("terminationMethod", per.Number(0)), per.F("callerIdentifier", per.Text(caller)))
}

// addresses are those that T.124 names, in each form that is seen.
func addresses(forms ...string) per.Value {
	var list []per.Value
	for _, f := range forms {
		list = append(list, per.Alternative("transportConnection", per.Fields(per.F("nsapAddress", per.Octet([]byte(f))))))
	}
	return per.Elements(list...)
}

func nodeRecord(forms ...string) per.Value {
	return per.Fields(
		per.F("nodeType", per.Number(0)),
		per.F("nodeProperties", per.Fields(per.F("managementDevice", per.Truth(false)), per.F("peripheralDevice", per.Truth(false)))),
		per.F("nodeName", per.Text("Alice")), per.F("networkAddress", addresses(forms...)))
}

func roster(t testing.TB, forms ...string) []byte {
	t.Helper()
	list := per.Elements(
		per.Fields(per.F("nodeID", per.Number(1005)), per.F("nodeRecord", nodeRecord(forms...))),
		per.Fields(per.F("nodeID", per.Number(1006)), per.F("nodeRecord", nodeRecord(forms...))))
	return encode(t, schema.T124GCCPDU, per.Alternative("indication", per.Alternative("rosterUpdateIndication", per.Fields(
		per.F("fullRefresh", per.Truth(true)),
		per.F("nodeInformation", per.Fields(per.F("nodeRecordList", per.Alternative("refresh", list)),
			per.F("rosterInstanceNumber", per.Number(7)), per.F("nodesAdded", per.Truth(true)), per.F("nodesRemoved", per.Truth(false)))),
		per.F("applicationInformation", per.Elements()),
	))))
}

func addRequest(t testing.TB, forms ...string) []byte {
	t.Helper()
	return encode(t, schema.T124GCCPDU, per.Alternative("request", per.Alternative("conferenceAddRequest", per.Fields(
		per.F("networkAddress", addresses(forms...)), per.F("requestingNode", per.Number(1005)), per.F("tag", per.Number(3))))))
}

// sendData wraps a GCCPDU as an MCS domain PDU: initiator 1005, high priority, one segment.
func sendData(channel byte, pdu []byte) []byte {
	out := []byte{0x64, 0, 4, 0, channel, 0x70}
	if len(pdu) < 0x80 {
		out = append(out, byte(len(pdu)))
	} else {
		out = append(out, 0x80|byte(len(pdu)>>8), byte(len(pdu)))
	}
	return append(out, pdu...)
}

func TestConnect(t *testing.T) {
	e := NewEditor()
	for _, tc := range []struct {
		in   []byte
		want Info
	}{
		{createRequest(t, name("1", "Staff"), "Alice"), Info{Kind: "conferenceCreateRequest", Conference: "Staff", Caller: "Alice"}},
		{createRequest(t, name("12345", ""), ""), Info{Kind: "conferenceCreateRequest", Conference: "12345"}},
		{connectData(t, "conferenceJoinRequest", per.F("conferenceName", per.Alternative("text", per.Text("Staff"))), per.F("callerIdentifier", per.Text("Bob"))),
			Info{Kind: "conferenceJoinRequest", Conference: "Staff", Caller: "Bob"}},
		{connectData(t, "conferenceQueryRequest", per.F("nodeType", per.Number(0))), Info{Kind: "conferenceQueryRequest"}},
		{connectData(t, "conferenceCreateResponse", per.F("nodeID", per.Number(1005)), per.F("tag", per.Number(1)), per.F("result", per.Number(0))),
			Info{Kind: "conferenceCreateResponse", Nodes: []uint16{1005}}},
	} {
		got, err := e.Connect(tc.in)
		if err != nil || got.Kind != tc.want.Kind || got.Conference != tc.want.Conference || got.Caller != tc.want.Caller || got.RDP || !slices.Equal(got.Nodes, tc.want.Nodes) {
			t.Errorf("got %+v, %v; want %+v", got, err, tc.want)
		}
	}
}

func TestRefused(t *testing.T) {
	e, good := NewEditor(), createRequest(t, name("1", "Staff"), "Alice")
	for i := range good {
		if got, err := e.Connect(good[:i]); err == nil {
			t.Errorf("cut to %d octets: %+v", i, got)
		}
	}
	for _, tc := range []struct {
		name string
		in   []byte
		err  error
	}{
		{"more behind it", append(slices.Clone(good), 0), ErrLength},
		{"another key", append([]byte{0, 5, 0, 0x14, 0x7c, 0, 2}, good[7:]...), ErrKey},
		{"h221 key", []byte{0x40, 4, 1, 2, 3, 4, 5, 6, 7}, ErrKey},
		{"fragments", append(slices.Clone(good[:7]), 0xc1), ErrLength},
		{"nothing", nil, ErrKey},
	} {
		if got, err := e.Connect(tc.in); !errors.Is(err, tc.err) {
			t.Errorf("%s: %+v, %v", tc.name, got, err)
		}
	}
}

func TestAddresses(t *testing.T) {
	e := NewEditor()
	raw := string(inside.AsSlice())
	for _, tc := range []struct {
		name     string
		in, want []byte
		change   Change
	}{
		{"roster", roster(t, raw), nil, Change{Removed: 2}},
		{"add, octets", addRequest(t, raw), addRequest(t, string(public.AsSlice())), Change{Replaced: 1}},
		{"add, octets and port", addRequest(t, raw+"\x05\xdf"), addRequest(t, string(public.AsSlice())+"\x05\xdf"), Change{Replaced: 1}},
		{"add, text", addRequest(t, "10.77.1.2"), addRequest(t, "198.51.100.1"), Change{Replaced: 1}},
		{"add, text and port", addRequest(t, "10.77.1.2:1503"), addRequest(t, "198.51.100.1:1503"), Change{Replaced: 1}},
		{"add, text with an end", addRequest(t, "10.77.1.2\x00"), addRequest(t, "198.51.100.1\x00"), Change{Replaced: 1}},
		{"add, several", addRequest(t, "203.0.113.9", raw), addRequest(t, "203.0.113.9", string(public.AsSlice())), Change{Replaced: 1}},
		{"add, another host", addRequest(t, "203.0.113.9"), addRequest(t, "203.0.113.9"), Change{}},
		{"add, unreadable", addRequest(t, "printer"), addRequest(t, "printer"), Change{Kept: 1}},
		{"no room", addRequest(t, "10.77.1.2:1503\x00\x00\x00\x00\x00\x00"), addRequest(t, "10.77.1.2:1503\x00\x00\x00\x00\x00\x00"), Change{Kept: 1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, change, err := e.Addresses(tc.in, hide)
			if err != nil || change != tc.change {
				t.Fatalf("%+v, %v; want %+v", change, err, tc.change)
			}
			if tc.want != nil && !bytes.Equal(got, tc.want) {
				t.Errorf("got  %x\nwant %x", got, tc.want)
			}
			if bytes.Contains(got, []byte(raw)) {
				t.Errorf("the address is still there: %x", got)
			}
			outer, change, nodes, err := e.SendData(sendData(1, tc.in), hide)
			if err != nil || change != tc.change || !bytes.Equal(outer, sendData(1, got)) {
				t.Errorf("in SendData: %x, %+v, %v; want %x", outer, change, err, sendData(1, got))
			}
			if tc.name == "roster" && !slices.Equal(nodes, []uint16{1005, 1006}) {
				t.Errorf("the roster's nodes: %v", nodes)
			}
		})
	}
}

func TestQueryResponse(t *testing.T) {
	descriptor := func(more ...per.Field) per.Value {
		return per.Fields(append([]per.Field{per.F("conferenceName", name("1", "Staff")),
			per.F("lockedConference", per.Truth(false)), per.F("passwordInTheClearRequired", per.Truth(true))}, more...)...)
	}
	response := func(d ...per.Value) []byte {
		return connectData(t, "conferenceQueryResponse", per.F("nodeType", per.Number(0)), per.F("conferenceList", per.Elements(d...)), per.F("result", per.Number(0)))
	}
	in := response(descriptor(per.F("networkAddress", addresses("10.77.1.2"))), descriptor())
	out, change, err := NewEditor().ConnectAddresses(in, hide)
	if err != nil || change != (Change{Removed: 1}) || !bytes.Equal(out, response(descriptor(), descriptor())) {
		t.Errorf("%x, %+v, %v", out, change, err)
	}
}

// TestCorpora reads what RDP puts into T.124, with the wrong length in the answer.
func TestCorpora(t *testing.T) {
	dir := tpkttest.Corpora(t, "../../..", "t120")
	for _, file := range []string{"INITIAL", "RESPONSE"} {
		b, err := os.ReadFile(filepath.Join(dir, "redemption-mcs--TestReceive_MCSPDU_CONNECT_"+file+"_with_factory-1.bin"))
		if err != nil {
			t.Fatal(err)
		}
		c, err := mcs.ParseConnect(b)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := NewEditor().Connect(c.UserData); err != nil || !got.RDP {
			t.Errorf("%s: %+v, %v", file, got, err)
		}
	}
}

// FuzzGCC reads and edits arbitrary octets: no panic, and what is changed can be read again.
func FuzzGCC(f *testing.F) {
	raw := string(inside.AsSlice())
	f.Add(createRequest(f, name("1", "Staff"), "Alice"))
	f.Add(roster(f, raw))
	f.Add(addRequest(f, raw, "10.77.1.2:1503"))
	f.Add(sendData(1, roster(f, raw)))
	f.Fuzz(func(t *testing.T, b []byte) {
		e := NewEditor()
		e.Connect(b)
		e.ConnectAddresses(b, hide)
		if out, c, err := e.Addresses(b, hide); err == nil && c.Removed+c.Replaced > 0 {
			if _, again, err := e.Addresses(out, hide); err != nil || again.Removed+again.Replaced > 0 {
				t.Fatalf("%x became %x: %+v, %v", b, out, again, err)
			}
		} else if !bytes.Equal(out, b) {
			t.Fatalf("%x became %x", b, out)
		}
		if out, c, _, err := e.SendData(b, hide); (err != nil || c.Removed+c.Replaced == 0) && !bytes.Equal(out, b) {
			t.Fatalf("%x became %x", b, out)
		}
	})
}
