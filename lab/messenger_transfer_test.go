//go:build lab

package lab

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// files is the section that lets files pass.
const files = "tftp: {ports: 6891-6901, deny: [exe], pending: %s}\n"

// TestMessengerFiles: files out and in, the outside listening and the inside listening, with every version of the
// signature, with TLS, with a server on either side.
func TestMessengerFiles(t *testing.T) {
	var settings []setting
	for _, version := range signing {
		for _, public := range []bool{false, true} {
			settings = append(settings, setting{Office: OfficeConfig{Signing: version}, Public: public})
		}
		settings = append(settings, setting{Office: OfficeConfig{Signing: version}, TLS: true})
	}
	settings = append(settings, setting{Turned: true}, setting{Office: OfficeConfig{Signing: 4}, Turned: true, TLS: true})
	for _, c := range settings {
		t.Run(fmt.Sprintf("signing-%d-public-%v-tls-%v-turned-%v", c.Office.Signing, c.Public, c.TLS, c.Turned), func(t *testing.T) {
			c.Edge.More, c.Capture = fmt.Sprintf(files, "1m"), true
			p := newPair(t, c)
			p.alice.offers(t, p.bob, "first.dat", 300000).arrives(t) // in the INVITE
			p.alice.offers(t, p.bob, "out.dat", 70000).arrives(t)    // in a MESSAGE
			p.bob.offers(t, p.alice, "in.dat", 70000).arrives(t)
			p.alice.talks(t, p.bob)
			p.office.wantSigned(t)
			p.wantNoLeaks(t)
			p.edge.wantIdle(t)
		})
	}
}

// TestMessengerNobodyComes: twelve invitations are taken up by clients that listen, and the client that should connect
// does not. The ports come back by the timer, and all of them can be used again.
func TestMessengerNobodyComes(t *testing.T) {
	p := newPair(t, setting{Edge: EdgeConfig{More: fmt.Sprintf(files, "8s")}})
	dave := p.rig.Outside("far2").Messenger(t, "dave", p.office.Addr, "tcp")
	for _, m := range []*Messenger{p.bob, dave} {
		m.Do("files hold")
		for i := range 6 {
			name := fmt.Sprintf("%s-%d.dat", m.User, i)
			p.alice.offers(t, m, name, 1000)
			m.wants(t, "xfer offered", name)
		}
	}
	p.alice.proc.Signal(syscall.SIGSTOP)
	p.bob.Do("take")
	dave.Do("take")
	eventually(t, messengerTime, "all eleven ports are taken", func() bool { return p.edge.Metric("edged_tftp_transfers", "listening") == 11 })
	eventually(t, messengerTime, "the twelfth is denied", func() bool { return p.edge.Metric("edged_tftp_denials_total") == 1 })
	eventually(t, messengerTime, "the ports come back", func() bool {
		return p.edge.Metric("edged_tftp_ended_total", "timeout") == 11 && p.edge.Count("pinholes") == 0
	})
	p.alice.proc.Signal(syscall.SIGCONT)
	if !p.alice.counts(12, "xfer send-cancel") {
		t.Fatalf("alice has not been told of all: %q", p.alice.events("xfer"))
	}
	p.bob.Do("files take")
	for i := range 11 {
		p.alice.offers(t, p.bob, fmt.Sprintf("again-%d.dat", i), 1000).arrives(t)
	}
	p.edge.wantIdle(t)
}

// holdBack keeps the host from connecting to the ports of file transfers, but from one port of its own; the function
// returned lets it.
func (h *Host) holdBack(t *testing.T, but uint16) (release func()) {
	t.Helper()
	run := func(script string) {
		t.Helper()
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(script)
		must(t, "nft", h.Do(func() error {
			out, err := cmd.CombinedOutput()
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		}))
	}
	run(fmt.Sprintf("table ip hold {\n chain out {\n  type filter hook output priority 0\n  tcp dport 6891-6901 tcp sport != %d drop\n }\n}\n", but))
	return func() { run("delete table ip hold\n") }
}

// stranger connects to a transfer's port, from a port of its own, as if it were bob, with a cookie that it has made up.
// It returns what it is told.
func (h *Host) stranger(t *testing.T, from uint16, to netip.AddrPort) []byte {
	t.Helper()
	var conn net.Conn
	err := h.Do(func() (err error) {
		d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(h.IP, from))}
		conn, err = d.Dial("tcp4", to.String())
		return err
	})
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET) {
		return nil
	}
	must(t, "dial", err)
	defer conn.Close()
	must(t, "deadline", conn.SetDeadline(time.Now().Add(messengerTime)))
	fmt.Fprint(conn, "VER MSN_SECURE_FTP\r\n")
	r := bufio.NewReader(conn)
	line, err := r.ReadString('\n')
	if err != nil {
		return []byte(line)
	}
	fmt.Fprint(conn, "USR bob@example.org 1\r\n")
	rest, err := io.ReadAll(r)
	if err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the stranger is not shown the door: %v", err)
	}
	return append([]byte(line), rest...)
}

// TestMessengerStranger: before the receiver connects, a third host does, and then somebody on the receiver's host
// who knows no cookie. Both are refused, neither gets an octet of the file, and the transfer completes.
func TestMessengerStranger(t *testing.T) {
	p := newPair(t, setting{Edge: EdgeConfig{More: fmt.Sprintf(files, "1m")}, Public: true})
	third := p.rig.Outside("third")
	const ownPort = 7777
	release := p.bob.Host.holdBack(t, ownPort)
	f := p.alice.offers(t, p.bob, "secret.dat", 300000)
	eventually(t, messengerTime, "the edge listens", func() bool { return p.edge.Metric("edged_tftp_transfers", "listening") == 1 })
	gate := p.edge.transferAt(t)
	for _, h := range []*Host{third, p.bob.Host} {
		if got := h.stranger(t, ownPort, gate); strings.Contains(string(got), "FIL") {
			t.Errorf("%s was offered the file: %q", h.Name, got)
		}
	}
	if p.alice.count("xfer send-start") != 0 {
		t.Error("a stranger reached alice")
	}
	release()
	f.arrives(t)
	p.edge.wantIdle(t)
}

// transferAt returns where the edge listens for the only transfer.
func (e *Edge) transferAt(t *testing.T) netip.AddrPort {
	t.Helper()
	_, b := e.get("/api/v1/transfers")
	var doc struct{ Transfers []struct{ Edge string } }
	must(t, "transfers", json.Unmarshal(b, &doc))
	if len(doc.Transfers) != 1 {
		t.Fatalf("not one transfer: %s", b)
	}
	ap, err := netip.ParseAddrPort(doc.Transfers[0].Edge)
	must(t, "transfers: "+string(b), err)
	return ap
}

// TestMessengerDenied: names that the policy does not allow, in both carriers, on legs with and without signatures,
// both ways. The sender is told, the receiver sees nothing of the file, and the conversation goes on.
func TestMessengerDenied(t *testing.T) {
	for _, version := range []int{0, 2, 4} {
		for _, inbound := range []bool{false, true} {
			t.Run(fmt.Sprintf("signing-%d-%s", version, map[bool]string{false: "out", true: "in"}[inbound]), func(t *testing.T) {
				p := newPair(t, setting{Office: OfficeConfig{Signing: version}, Edge: EdgeConfig{More: fmt.Sprintf(files, "1m")}})
				from, to := p.alice, p.bob
				if inbound {
					from, to = p.bob, p.alice
				}
				denied := []*offered{from.refused(t, to, "first.EXE ")} // in the INVITE, for there is no conversation yet
				from.talks(t, to)
				denied = append(denied, from.refused(t, to, "second.EXE "), from.refused(t, to, "third.exe."))
				from.talks(t, to)
				from.offers(t, to, "harmless.dat", 1000).arrives(t)
				for _, f := range denied {
					if b := f.received(t); len(b) != 0 {
						t.Errorf("%d octets of %q arrived", len(b), f.name)
					}
					if version == 0 && to.count("xfer offered", f.name) != 0 {
						t.Errorf("%s was shown %q", to.User, f.name)
					}
				}
				p.office.wantSigned(t)
				for _, m := range []*Messenger{from, to} {
					if bad := m.events("error"); len(bad) != 0 {
						t.Errorf("%s: %q", m.User, bad)
					}
				}
				p.edge.wantIdle(t)
			})
		}
	}
}

// refused offers a file, and waits until its sender has been told that he cannot send it.
func (m *Messenger) refused(t *testing.T, to *Messenger, name string) *offered {
	t.Helper()
	f := m.offers(t, to, name, 1000)
	m.wants(t, "xfer send-cancel", " "+name)
	return f
}

// wantIdle fails the test unless all ports of transfers come back.
func (e *Edge) wantIdle(t testing.TB) {
	t.Helper()
	eventually(t, messengerTime, "no transfer and no pinhole is left", func() bool {
		return e.Metric("edged_tftp_transfers", "listening") == 0 && e.Metric("edged_tftp_transfers", "running") == 0 && e.Count("pinholes") == 0
	})
}

// TestMessengerContent: the edge reads what clients send each other, with the keys that it has seen, and they do not
// notice: files arrive as they were and with a good MAC. A program by another name does not arrive.
func TestMessengerContent(t *testing.T) {
	for _, version := range []int{0, 4} {
		for _, public := range []bool{false, true} {
			t.Run(fmt.Sprintf("signing-%d-public-%v", version, public), func(t *testing.T) {
				more := "tftp: {ports: 6891-6901, content: {verify: true, types: [executable]}}\n"
				p := newPair(t, setting{Office: OfficeConfig{Signing: version}, Edge: EdgeConfig{More: more}, Public: public})
				p.alice.offers(t, p.bob, "out.dat", 300000).arrives(t)
				p.bob.offers(t, p.alice, "in.dat", 70000).arrives(t)
				eventually(t, messengerTime, "both are known to be whole", func() bool { return p.edge.Metric("edged_tftp_ended_total", "completed") == 2 })
				for _, way := range [][2]*Messenger{{p.alice, p.bob}, {p.bob, p.alice}} {
					program := append([]byte("MZ\x90\x00\x03\x00\x00\x00\x04\x00\x00\x00\xff\xff\x00\x00"), make([]byte, 200000)...)
					f := way[0].offersData(t, way[1], "holiday-"+way[0].User+".jpg", program)
					way[0].wants(t, "xfer send-cancel", " "+f.name)
					if b := f.received(t); len(b) > 0 {
						t.Errorf("%d octets of %s arrived", len(b), f.name)
					}
				}
				eventually(t, messengerTime, "both programs are counted", func() bool { return p.edge.Metric("edged_tftp_ended_total", `"type"`) == 2 })
				p.alice.talks(t, p.bob)
				p.office.wantSigned(t)
				p.edge.wantIdle(t)
			})
		}
	}
}

// TestMessengerFilesHairpin: both clients inside, their server outside, so that every message passes the edge twice.
func TestMessengerFilesHairpin(t *testing.T) {
	for _, version := range []int{0, 4} {
		t.Run(fmt.Sprintf("signing-%d", version), func(t *testing.T) {
			p := newPair(t, setting{Office: OfficeConfig{Signing: version}, Edge: EdgeConfig{More: fmt.Sprintf(files, "1m")}, Capture: true})
			h := p.rig.Inside("near2")
			h.Renumber(t, p.rig) // listens where she sends
			carol := h.Messenger(t, "carol", p.gate, "tcp")
			p.alice.offers(t, carol, "to.dat", 70000).arrives(t)
			carol.offers(t, p.alice, "fro.dat", 70000).arrives(t)
			p.alice.refused(t, carol, "never.exe")
			p.alice.talks(t, carol)
			p.office.wantSigned(t)
			p.wantNoLeaks(t)
			p.edge.wantIdle(t)
		})
	}
}
