//go:build lab

package lab

import (
	"bufio"
	"net"
	"net/netip"
	"sync"
	"testing"
)

// meddler passes SIP on to the server, and lets edit change messages on their way.
func (h *Host) meddler(t *testing.T, to netip.AddrPort, edit func(m *Message, fromClient bool)) netip.AddrPort {
	t.Helper()
	var ln net.Listener
	var mu sync.Mutex
	var conns []net.Conn
	var work sync.WaitGroup
	must(t, "listen", h.Do(func() (err error) {
		ln, err = net.Listen("tcp4", h.Addr(4, 5060).String())
		return err
	}))
	pass := func(from, to net.Conn, fromClient bool) {
		defer from.Close()
		defer to.Close()
		for r := bufio.NewReader(from); ; {
			m, err := parseMessage(r, false)
			if err != nil {
				return
			}
			edit(m, fromClient)
			if _, err := to.Write(m.octets()); err != nil {
				return
			}
		}
	}
	work.Go(func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			var server net.Conn
			if err := h.Do(func() (err error) { server, err = net.Dial("tcp4", to.String()); return err }); err != nil {
				client.Close()
				continue
			}
			mu.Lock()
			conns = append(conns, client, server)
			mu.Unlock()
			work.Go(func() { pass(client, server, true) })
			work.Go(func() { pass(server, client, false) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
		work.Wait()
	})
	return h.Addr(4, 5060)
}

// TestMessengerSignatureControl: an Expires that somebody adds on the way is covered by the signature. The server
// notices it, and the client does. So what passes the edge in the other cases was not changed where it must not be.
func TestMessengerSignatureControl(t *testing.T) {
	for _, c := range []struct {
		name       string
		fromClient bool
	}{{"client-to-server", true}, {"server-to-client", false}} {
		t.Run(c.name, func(t *testing.T) {
			r := messengerLab(t)
			o := r.Outside("office").Office(t, OfficeConfig{Signing: 4})
			gate := r.Outside("meddler").meddler(t, o.Addr, func(m *Message, fromClient bool) {
				if fromClient == c.fromClient && m.Method() == "MESSAGE" && m.Status() == 0 {
					m.Fields = append(m.Fields, Field{"Expires", "599"})
				}
			})
			alice := r.Outside("out1").Messenger(t, "alice", gate, "tcp")
			bob := r.Outside("out2").Messenger(t, "bob", o.Addr, "tcp")
			if c.fromClient {
				alice.Do("im sip:bob@example.org changed on its way")
				eventually(t, messengerTime, "the server finds a bad signature", func() bool { return len(o.takeBad()) > 0 })
				return
			}
			bob.Do("im sip:alice@example.org changed on its way")
			alice.meddled = true
			alice.wants(t, "error", badSignature)
			o.wantSigned(t)
		})
	}
}
