package ils

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"
)

// replay sends the turns of a connection through a session, cut into pieces, and returns what came out on
// each side, in turns, and the first error.
func replay(s *session, list []turn, client netip.AddrPort, piece int) (out [][]byte, err error) {
	limit := 256 << 10
	req := framer{limit: limit, opaque: s.opaque, seal: s.seal}
	resp := framer{limit: limit, unread: maxUnread, opaque: s.opaque, seal: s.seal}
	for _, tn := range list {
		f, edit := &resp, s.response
		if tn.src == client {
			f, edit = &req, s.request
		}
		var got []byte
		for data := tn.data; len(data) > 0 && err == nil; {
			n := min(piece, len(data), len(f.space()))
			copy(f.space(), data[:n])
			f.filled(n)
			data = data[n:]
			var part []byte
			part, err = f.drain(edit)
			got = append(got, part...)
		}
		out = append(out, got)
	}
	return out, err
}

// clientOf says who of a connection is the client: the one that does not speak from a directory's port.
func clientOf(tn turn) netip.AddrPort {
	if isDirectory(tn.src.Port()) {
		return tn.dst
	}
	return tn.src
}

func isDirectory(port uint16) bool { return port == 389 || port == 1389 || port == 3268 }

// mapped is a network on whose inside the capture's client is.
func mapped(e *edge, client netip.AddrPort) *session {
	s := e.session(insideHost, false)
	s.host = client.Addr()
	inside := s.nets["inside"]
	inside.Subnets = append(inside.Subnets, netip.PrefixFrom(client.Addr(), client.Addr().BitLen()))
	s.nets["inside"] = inside
	return s
}

// TestUnrelated: other directories pass octet by octet, however the stream is cut.
func TestUnrelated(t *testing.T) {
	conns := 0
	for _, name := range corpusFiles(t, "ils-ldap") {
		file := corpus(t, name)
		for key, list := range turns(t, file) {
			if !isDirectory(list[0].src.Port()) && !isDirectory(list[0].dst.Port()) {
				continue // Kerberos and others beside it
			}
			conns++
			for _, piece := range []int{1 << 20, 1, 7} {
				for _, dedicated := range []bool{false, true} {
					e := newEdge(func(c *Config) { c.Dedicated = dedicated })
					s := mapped(e, clientOf(list[0]))
					out, err := replay(s, list, clientOf(list[0]), piece)
					if err != nil {
						t.Errorf("%s %s in pieces of %d: %v", name, key, piece, err)
					}
					for i := range out {
						if !bytes.Equal(out[i], list[i].data) {
							t.Errorf("%s %s in pieces of %d: turn %d of %d octets became %d octets", name, key, piece, i, len(list[i].data), len(out[i]))
						}
					}
					if got := e.reg.Entries(); len(got) > 0 {
						t.Errorf("%s registered %+v", name, got)
					}
				}
			}
		}
	}
	if conns < 15 {
		t.Errorf("only %d connections were found", conns)
	}
	t.Logf("%d connections of other directories: unchanged, in pieces of any size", conns)
}

// TestCapture is a NetMeeting registration and lookups at slapd, captured with the inside addresses in it.
func TestCapture(t *testing.T) {
	for _, piece := range []int{1 << 20, 1} {
		t.Run(fmt.Sprint("pieces of ", piece), func(t *testing.T) {
			e, edits := newEdge(), []string{}
			for _, list := range turns(t, corpus(t, "h323-lab/ils-cap.pcap")) {
				client := clientOf(list[0])
				s := mapped(e, client)
				s.host = insideHost // what the relay of the capture hid
				out, err := replay(s, list, client, piece)
				if err != nil {
					t.Fatal(err)
				}
				for i, tn := range list {
					if bytes.Equal(out[i], tn.data) {
						continue
					}
					edits = append(edits, what(t, firstMessage(t, tn.data), firstMessage(t, out[i])))
					if tn.src != client {
						t.Errorf("an answer changed: %q", out[i])
					}
				}
			}
			// the Add, and the filter on the address; the entry in an answer has the inside address already
			if len(edits) != 2 || edits[0] != in2+">"+pub || edits[1] != in2+">"+pub {
				t.Errorf("edited %q", edits)
			}
			if got, ok := e.reg.Lookup("egruber@contoso.com"); !ok || got.Host != insideHost {
				t.Errorf("registered %+v, %v", got, ok)
			}
		})
	}
}

// firstMessage cuts the first message off a stream.
func firstMessage(t *testing.T, b []byte) []byte {
	t.Helper()
	f := framer{limit: 1 << 20, opaque: func(byte) bool { return false }}
	f.buf = b
	n, err := f.size()
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}
