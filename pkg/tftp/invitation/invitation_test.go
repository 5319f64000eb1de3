package invitation

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

const accept = "Invitation-Command: ACCEPT\r\nRequest-Data: IP-Address:\r\nInvitation-Cookie: 174980485\r\n" +
	"Encryption-Key: MvNVAwmfdQq3a+aoh8V2NWj0YUPlYJMy\r\nIP-Address: 203.0.113.2\r\nPort: 6891\r\nPortX: 11178\r\n" +
	"AuthCookie: 863489474\r\nSender-Connect: TRUE\r\n"

func TestValues(t *testing.T) {
	inv, err := Parse([]byte(accept))
	if err != nil {
		t.Fatal(err)
	}
	for f, want := range map[Field]string{
		Command: "ACCEPT", Cookie: "174980485", IPAddress: "203.0.113.2", Port: "6891", PortX: "11178",
		AuthCookie: "863489474", SenderConnect: "TRUE", EncryptionKey: "MvNVAwmfdQq3a+aoh8V2NWj0YUPlYJMy", HashKey: "",
	} {
		if got := inv.Value(f); got != want {
			t.Errorf("%s: %q, want %q", f, got, want)
		}
	}
	if inv.Has(HashKey) || !inv.Has(Port) {
		t.Error("Has")
	}
}

// TestEdit: only what is named changes, whatever the lines' ends, blanks and case are.
func TestEdit(t *testing.T) {
	changes := []Change{
		{Field: Port, Value: "6899"},
		{Field: IPAddress, Value: "2001:db8::1"},
		{Field: IPAddressInternal, Remove: true},
		{Field: PortX, Value: "11234"},
		{Field: Port, Value: "1"},
	}
	for name, tt := range map[string]struct{ in, want string }{
		"crlf": {accept, strings.NewReplacer("IP-Address: 203.0.113.2", "IP-Address: 2001:db8::1", "Port: 6891", "Port: 6899", "11178", "11234").Replace(accept)},
		"lf, case and blanks": {
			"ip-address:192.0.2.7 \nPORT :\t6891\nX: y\nIP-Address-Internal: 192.0.2.9\nIP-Address-Other: 192.0.2.9",
			"ip-address:2001:db8::1 \nPORT :\t6899\nX: y\nIP-Address-Other: 192.0.2.9",
		},
		"last line open": {"Port: 1\r\nIP-Address-Internal: 192.0.2.9", "Port: 6899\r\n"},
		"empty value":    {"Port:\r\n", "Port:6899\r\n"},
		"nothing there":  {"Hello: world\r\n\r\n", "Hello: world\r\n\r\n"},
	} {
		inv, err := Parse([]byte(tt.in))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := string(inv.Edit(changes...)); got != tt.want {
			t.Errorf("%s:\n%q, want\n%q", name, got, tt.want)
		}
	}
}

func TestRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		in   string
		want error
	}{
		"twice":          {"Port: 1\r\nport: 2\r\n", ErrForm},
		"twice, blank":   {"Application-File: a.txt\r\nApplication-File : a.exe\r\n", ErrForm},
		"folded":         {"Application-File: a.\r\n exe\r\n", ErrForm},
		"bare CR":        {"X: y\rApplication-File: a.exe\r\n", ErrForm},
		"mixed ends":     {"Application-File: a.txt\n.exe\r\n", ErrForm},
		"no field":       {"Application-File: a.txt\r\n.exe\r\n", ErrForm},
		"odd blank":      {"Application-File: a.txt\r\n\u00a0.exe: x\r\n", ErrForm},
		"NUL":            {"Application-File: a.exe\x00.txt\r\n", ErrForm},
		"too long":       {strings.Repeat("a", MaxBody+1), ErrSize},
		"too many lines": {strings.Repeat("a:\n", maxLines+1), ErrSize},
	} {
		if _, err := Parse([]byte(tt.in)); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCancel(t *testing.T) {
	inv, err := Parse(Cancel("77", "REJECT"))
	if err != nil || inv.Value(Command) != "CANCEL" || inv.Value(Cookie) != "77" || inv.Value(CancelCode) != "REJECT" {
		t.Fatalf("%v, %v", inv, err)
	}
}

// FuzzParse: whatever is taken can be edited, the edits are found again, and no edit changes nothing.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		accept, strings.ReplaceAll(accept, "\r\n", "\n"), "", ":", "\n", "Port", "Port:", "Port: \r", "Port:1\n\nPort-Internal:2",
		"Application-File: \xff\xfe.exe\r\n", "Application-File: a.exe.\r\nApplication-FileSize: 99999999999999999999\r\n",
		"Application-GUID: {5D3E02AB-6190-11d3-BBBB-00C04F795683}\r\nInvitation-Command: INVITE\r\nConnectivity: N\r\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		inv, err := Parse(body)
		if err != nil {
			return
		}
		if !bytes.Equal(inv.Edit(), body) {
			t.Fatal("an edit of nothing changed the body")
		}
		next, err := Parse(inv.Edit(Change{Field: IPAddress, Value: "192.0.2.1"}, Change{Field: PortX, Remove: true}, Change{Field: Port, Value: "7"}))
		if err != nil {
			t.Fatalf("the edited body: %v", err)
		}
		for fd := range fields {
			want := inv.Value(fd)
			switch {
			case fd == IPAddress && inv.Has(fd):
				want = "192.0.2.1"
			case fd == Port && inv.Has(fd):
				want = "7"
			case fd == PortX:
				want = ""
			}
			if got := next.Value(fd); got != want {
				t.Fatalf("%s: %q, want %q", fd, got, want)
			}
		}
	})
}
