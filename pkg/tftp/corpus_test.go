package tftp

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"edged.dev/edged/pkg/tftp/invitation"
)

// corpus reads a file of the corpora, or skips the test.
func corpus(t *testing.T, name string) []byte {
	t.Helper()
	dir := os.Getenv("EDGED_CORPORA")
	if dir == "" {
		dir = "../../../shared/corpora"
	}
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Skipf("SKIP: no corpus %s (set EDGED_CORPORA): %v", name, err)
	}
	return b
}

// TestCapturedInvitations: each invitation that a real client sent in clear over TCP is understood, and an edit of its
// address changes nothing else.
func TestCapturedInvitations(t *testing.T) {
	found := 0
	for _, name := range []string{"ms-edge/ft1.pcap", "ms-edge/ntlm_edge.pcap"} {
		raw := corpus(t, name)
		for _, body := range regexp.MustCompile(`(?:[A-Z][A-Za-z-]+: ?[^\r\n\x00]*\r\n){2,}`).FindAll(raw, -1) {
			if !bytes.Contains(body, []byte("Invitation-Cookie:")) || bytes.Contains(body, []byte("Call-ID:")) {
				continue
			}
			inv, err := invitation.Parse(body)
			if err != nil || !plainCookie(inv.Value(invitation.Cookie)) {
				t.Fatalf("%q: %v", body, err)
			}
			found++
			switch inv.Value(invitation.Command) {
			case "INVITE":
				if reason := (&Config{}).judgeFile(inv.Value(invitation.File), inv.Value(invitation.FileSize)); reason != "" || inv.Value(invitation.GUID) != "{5D3E02AB-6190-11d3-BBBB-00C04F795683}" {
					t.Errorf("%q: %s", body, reason)
				}
			case "ACCEPT":
				checkRewrite(t, body, inv)
			default:
				t.Errorf("%q", body)
			}
		}
	}
	if found < 10 {
		t.Fatalf("%d invitations found", found)
	}
}

// checkRewrite compares an acceptance with its edited copy, line by line.
func checkRewrite(t *testing.T, body []byte, inv *invitation.Invitation) {
	t.Helper()
	if !inv.Has(invitation.IPAddress) {
		return
	}
	if _, ok := target(inv); !ok {
		t.Fatalf("%q names no address", body)
	}
	local := networks()["outside"].Advertise
	after := bytes.Split(rewrite(inv, netip.AddrPortFrom(local, 6899)), []byte("\r\n"))
	for i, line := range bytes.Split(body, []byte("\r\n")) {
		want := string(line)
		switch {
		case bytes.HasPrefix(line, []byte("IP-Address:")):
			want = "IP-Address: 203.0.113.5"
		case bytes.HasPrefix(line, []byte("Port:")):
			want = "Port: 6899"
		case bytes.HasPrefix(line, []byte("PortX:")):
			want = "PortX: 11186"
		}
		if string(after[i]) != want {
			t.Errorf("%q became %q", line, after[i])
		}
	}
}

// TestOtherApplications: invitations of MSN to audio and to NetMeeting are refused, as nobody has allowed them.
func TestOtherApplications(t *testing.T) {
	for _, name := range []string{"msn/msmsgsinvite-audio.msg", "msn/msmsgsinvite-netmeeting.msg"} {
		w := newWorld(t)
		if v := w.say("alice bob alice bob", string(corpus(t, name))); v.Refuse != 606 || w.e.count.denials[reasonApplication] != 1 {
			t.Errorf("%s: %+v, %v", name, v, w.e.count.denials)
		}
	}
}
