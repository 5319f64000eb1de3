package proxydial

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
)

// fakeSOCKS is a SOCKS5 proxy with the given login that echoes.
func fakeSOCKS(user, password string, reply byte, asked chan<- string) func(net.Conn) {
	return func(c net.Conn) {
		b := make([]byte, 512)
		read := func(n int) []byte { _, _ = io.ReadFull(c, b[:n]); return b[:n] }
		methods := bytes.Clone(read(int(read(2)[1])))
		want := byte(0)
		if user != "" {
			want = 2
		}
		if !bytes.Contains(methods, []byte{want}) {
			_, _ = c.Write([]byte{5, 0xff})
			return
		}
		_, _ = c.Write([]byte{5, want})
		if user != "" {
			u := string(read(int(read(2)[1])))
			p := string(read(int(read(1)[0])))
			if u != user || p != password {
				_, _ = c.Write([]byte{1, 1})
				return
			}
			_, _ = c.Write([]byte{1, 0})
		}
		if head := read(4); head[3] != 3 {
			return
		}
		name := string(read(int(read(1)[0])))
		read(2)
		asked <- name
		_, _ = c.Write([]byte{5, reply, 0, 3, 4, 'n', 'a', 'm', 'e', 0, 80})
		if reply == 0 {
			_, _ = io.Copy(c, c)
		}
	}
}

func TestSOCKS(t *testing.T) {
	for _, c := range []struct {
		name, user, password string
		reply                byte
		want                 func(error) bool
	}{
		{"open", "", "", 0, func(err error) bool { return err == nil }},
		{"password", "alice", "secret1", 0, func(err error) bool { return err == nil }},
		{"wrong password", "alice", "other", 0, func(err error) bool { return errors.Is(err, ErrRefused) }},
		{"not allowed", "", "", 2, func(err error) bool { return errors.Is(err, SOCKSError{2}) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			asked := make(chan string, 1)
			d, logs := dialer(t, nil)
			got, err := d.Dial(within(t), Proxy{Scheme: SOCKS5, Address: listen(t, fakeSOCKS(c.user, c.password, c.reply, asked))}, "relay.example.org:443")
			if !c.want(err) {
				t.Fatal(err)
			}
			wantNoSecret(t, logs)
			if err != nil {
				return
			}
			defer got.Conn.Close()
			wantEcho(t, got.Conn)
			if name := <-asked; name != "relay.example.org" {
				t.Errorf("the proxy was asked for %q", name)
			}
		})
	}
}

func TestSOCKSWrongPasswordIsHeld(t *testing.T) {
	asked := make(chan string, 1)
	d, _ := dialer(t, nil)
	p := Proxy{Scheme: SOCKS5, Address: listen(t, fakeSOCKS("alice", "other", 0, asked))}
	if _, err := d.Dial(within(t), p, "relay.example.org:443"); !errors.Is(err, ErrRefused) {
		t.Fatal(err)
	}
	if _, err := d.Dial(within(t), p, "relay.example.org:443"); !errors.Is(err, ErrHeld) {
		t.Errorf("second: %v", err)
	}
}

func FuzzSOCKSReply(f *testing.F) {
	f.Add([]byte{5, 0, 0, 1, 1, 2, 3, 4, 0, 80})
	f.Add([]byte{5, 0, 0, 3, 4, 'n', 'a', 'm', 'e', 0, 80})
	f.Add([]byte{5, 0, 0, 4, 4})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		if err := socksReply(r); err == nil && len(b)-r.Len() < 7 {
			t.Fatalf("%x read as a reply", b[:len(b)-r.Len()])
		}
	})
}
