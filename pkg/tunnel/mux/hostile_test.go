package mux

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// puppet is a client that says what the test wants.
type puppet struct {
	t      *testing.T
	conn   net.Conn
	server *Session
}

// newPuppet has exchanged HELLOs with a server and reads what that sends.
func newPuppet(t *testing.T, cfg Config) *puppet {
	a, b := newPipe(time.Millisecond, unlimited)
	h := hello{version: version, flags: flagNew, id: ID{7}, epoch: 1, streamWindow: 1 << 20, sessionWindow: 1 << 20, streams: 10}
	if _, err := a.Write(h.frame()); err != nil {
		t.Fatal(err)
	}
	s, _, err := Server(t.Context(), b, func(ID) *Session { return nil }, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return &puppet{t, a, s}
}

func (p *puppet) send(typ frameType, flags uint8, stream uint32, payload []byte) {
	p.t.Helper()
	b := make([]byte, headerLen+len(payload))
	header{typ, flags, len(payload), stream}.put(b)
	copy(b[headerLen:], payload)
	if _, err := p.conn.Write(b); err != nil {
		p.t.Fatal(err)
	}
}

func u32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
func u64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

// ended waits for the END, and checks both ends' codes.
func (p *puppet) ended(want Code) {
	p.t.Helper()
	all, err := io.ReadAll(p.conn)
	if err != nil {
		p.t.Fatal(err)
	}
	end := endFrame(want)
	if !bytes.HasSuffix(all, end) {
		p.t.Errorf("last bytes %x, not END of %v", all[max(0, len(all)-12):], want)
	}
	<-p.server.Done()
	var f *SessionError
	if !errors.As(p.server.Err(), &f) || f.Code != want || f.Remote {
		p.t.Errorf("%v", p.server.Err())
	}
	p.server.Close(CodeClosed)
	if got := p.server.Stats(); got.Streams != 0 || got.Unacked != 0 {
		p.t.Errorf("%+v", got)
	}
}

func TestHostile(t *testing.T) {
	for _, c := range []struct {
		name string
		want Code
		do   func(p *puppet)
	}{
		{"unknown type", CodeProtocol, func(p *puppet) { p.send(0x3f, 0, 0, nil) }},
		{"type 0", CodeProtocol, func(p *puppet) { p.send(0, 0, 0, nil) }},
		{"oversized frame", CodeProtocol, func(p *puppet) { p.send(typeData, 0, 1, make([]byte, maxPayload+1)) }},
		{"oversized header", CodeProtocol, func(p *puppet) { p.send(typeOpen, 0, 1, make([]byte, MaxHeader+1)) }},
		{"second HELLO", CodeProtocol, func(p *puppet) { p.send(typeHello, 0, 0, make([]byte, helloLen)) }},
		{"short ACK", CodeProtocol, func(p *puppet) { p.send(typeAck, 0, 0, make([]byte, 7)) }},
		{"ACK of what was not sent", CodeProtocol, func(p *puppet) { p.send(typeAck, 0, 0, u64(1000)) }},
		{"ACK on a stream", CodeProtocol, func(p *puppet) { p.send(typeAck, 0, 1, u64(0)) }},
		{"OPEN on the session", CodeProtocol, func(p *puppet) { p.send(typeOpen, 0, 0, nil) }},
		{"OPEN of the server's", CodeProtocol, func(p *puppet) { p.send(typeOpen, 0, 2, nil) }},
		{"OPEN twice", CodeProtocol, func(p *puppet) {
			p.send(typeOpen, 0, 5, nil)
			p.send(typeOpen, 0, 5, nil)
		}},
		{"OPEN backwards", CodeProtocol, func(p *puppet) {
			p.send(typeOpen, 0, 5, nil)
			p.send(typeOpen, 0, 3, nil)
		}},
		{"ACCEPT of its own", CodeProtocol, func(p *puppet) {
			p.send(typeOpen, 0, 1, nil)
			p.send(typeAccept, 0, 1, nil)
		}},
		{"DATA never opened", CodeProtocol, func(p *puppet) { p.send(typeData, 0, 1, []byte("x")) }},
		{"DATA of the server's", CodeProtocol, func(p *puppet) { p.send(typeData, 0, 2, []byte("x")) }},
		{"DATA after FIN", CodeProtocol, func(p *puppet) {
			p.send(typeOpen, 0, 1, nil)
			p.send(typeFin, 0, 1, nil)
			p.send(typeData, 0, 1, []byte("x"))
		}},
		{"FIN twice", CodeProtocol, func(p *puppet) {
			p.send(typeOpen, 0, 1, nil)
			p.send(typeFin, 0, 1, nil)
			p.send(typeFin, 0, 1, nil)
		}},
		{"more than the stream's credit", CodeFlowControl, func(p *puppet) {
			p.send(typeOpen, 0, 1, nil)
			for range 17 {
				p.send(typeData, 0, 1, make([]byte, 16000))
			}
		}},
		{"more than the session's credit", CodeFlowControl, func(p *puppet) {
			for i := range uint32(5) {
				p.send(typeOpen, 0, 1+2*i, nil)
				for range 16 {
					p.send(typeData, 0, 1+2*i, make([]byte, 16000))
				}
			}
		}},
		{"credit that overflows", CodeFlowControl, func(p *puppet) {
			p.send(typeOpen, 0, 1, nil)
			p.send(typeCredit, 0, 1, u32(maxCredit))
		}},
		{"session credit that overflows", CodeFlowControl, func(p *puppet) { p.send(typeCredit, 0, 0, u32(1<<32-1)) }},
		{"credit of nothing", CodeFlowControl, func(p *puppet) { p.send(typeCredit, 0, 0, u32(0)) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPuppet(t, Config{SessionWindow: 1 << 20, Ring: chunkSize, MaxStreams: 10})
				c.do(p)
				p.ended(c.want)
			})
		})
	}
}

// Streams over the limit are refused; a peer that opens them without end and
// reads no answer is not kept.
func TestStreamFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPuppet(t, Config{MaxStreams: 10, Ring: chunkSize})
		for i := range uint32(13) {
			p.send(typeOpen, 0, 1+2*i, nil)
		}
		time.Sleep(time.Second)
		if v := p.server.Stats(); v.Refused != 3 || v.Streams != 10 {
			t.Errorf("%+v", v)
		}
		p.conn.(*pipe).in.block()
		for i := range uint32(20000) {
			p.send(typeOpen, 0, 101+2*i, nil)
			if i%1000 == 0 {
				time.Sleep(10 * time.Millisecond)
			}
		}
		<-p.server.Done()
		var f *SessionError
		if !errors.As(p.server.Err(), &f) || f.Code != CodeTryLater {
			t.Errorf("%v", p.server.Err())
		}
		p.server.Close(CodeClosed)
	})
}

// What later versions may send does no harm, and is counted as they say.
func TestSkipped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPuppet(t, Config{})
		p.send(0x40, 9, 77, make([]byte, maxPayload))
		p.send(0x7f, 9, 77, nil)
		p.send(0x80, 9, 77, make([]byte, 100))
		p.send(0xff, 9, 77, nil)
		p.send(typeData+0x80, 0, 1, nil)
		time.Sleep(time.Second)
		if v := p.server.Stats(); v.Received != 3*headerLen+100 || !v.Attached {
			t.Errorf("%+v", v)
		}
		p.server.Close(CodeClosed)
		p.ended(CodeClosed)
	})
}

// Frames of one byte do not cost a buffer each.
func TestTinyFrames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPuppet(t, Config{})
		p.send(typeOpen, 0, 1, nil)
		var tiny [headerLen + 1]byte
		header{typeData, 0, 1, 1}.put(tiny[:])
		if _, err := p.conn.Write(bytes.Repeat(tiny[:], 100000)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		p.server.mu.Lock()
		if st := p.server.streams[1]; st.recv.size != 100000 || len(st.recv.pieces) > 8 {
			t.Errorf("%d bytes in %d pieces", st.recv.size, len(st.recv.pieces))
		}
		p.server.mu.Unlock()
		p.server.Close(CodeCanceled)
		p.ended(CodeCanceled)
	})
}

// Datagrams to nowhere are counted, those that nobody reads are bounded.
func TestDatagramFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPuppet(t, Config{})
		for i := range uint32(10) {
			p.send(typeOpen, flagDatagrams, 1+2*i, nil)
		}
		for range 100 {
			for i := range uint32(10) {
				p.send(typeDgram, 0, 1+2*i, make([]byte, maxPayload))
			}
			p.send(typeDgram, 0, 99, nil)
		}
		time.Sleep(time.Second)
		p.server.mu.Lock()
		if n := p.server.unreadDatagrams; n > datagramBytes {
			t.Errorf("%d bytes", n)
		}
		p.server.mu.Unlock()
		if v := p.server.Stats(); v.DroppedNoStream != 100 || v.DroppedQueue == 0 || !v.Attached {
			t.Errorf("%+v", v)
		}
		p.server.Close(CodeCanceled)
		if p.server.unreadDatagrams != 0 {
			t.Errorf("%d bytes left", p.server.unreadDatagrams)
		}
		p.ended(CodeCanceled)
	})
}

// A resuming peer that claims bytes which were not sent, are not kept, or end
// within a frame, has lost its session.
func TestFalseOffsets(t *testing.T) {
	for _, received := range []uint64{3, 10, 1 << 40, 1<<64 - 1} {
		synctest.Test(t, func(t *testing.T) {
			p := newPuppet(t, Config{})
			p.send(typeOpen, 0, 1, nil)
			in, err := p.server.Accept(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			_, _ = in.Accept().Write(make([]byte, 100))
			a, b := newPipe(time.Millisecond, unlimited)
			h := hello{version: version, id: ID{7}, epoch: 2, received: received}
			if _, err := a.Write(h.frame()); err != nil {
				t.Fatal(err)
			}
			_, _, err = Server(t.Context(), b, func(ID) *Session { return p.server }, Config{})
			var f *SessionError
			if !errors.As(err, &f) || f.Code != CodeEmptySession {
				t.Errorf("%d: %v", received, err)
			}
			<-p.server.Done()
			p.server.Close(CodeClosed)
		})
	}
}

func FuzzHeader(f *testing.F) {
	f.Add([]byte{4, 0, 0, 5, 0, 0, 0, 1})
	f.Add([]byte{9, 0, 0, 8, 0, 0, 0, 0})
	f.Add([]byte{0xff, 1, 2, 3, 4, 5, 6, 7})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < headerLen {
			return
		}
		h, bad := parseHeader(b)
		if bad != nil {
			return
		}
		if h.size > maxPayload {
			t.Fatalf("payload of %d bytes", h.size)
		}
		var out [headerLen]byte
		if h.put(out[:]); !bytes.Equal(out[:], b[:headerLen]) {
			t.Fatalf("%x became %x", b[:headerLen], out)
		}
	})
}

func FuzzHello(f *testing.F) {
	f.Add(hello{version: version, epoch: 1, flags: flagNew, id: ID{1, 2, 3}, received: 5}.frame()[headerLen:])
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < helloLen {
			return
		}
		h, bad := parseHello(b)
		if bad != nil {
			return
		}
		again, bad := parseHello(h.frame()[headerLen:])
		if bad != nil || again != h {
			t.Fatalf("%+v became %+v", h, again)
		}
	})
}

// FuzzSession feeds a session with frames that are mostly well-formed. What
// it holds stays bounded, and it ends cleanly.
func FuzzSession(f *testing.F) {
	frame := func(typ frameType, flags uint8, stream uint32, payload string) []byte {
		b := make([]byte, headerLen)
		header{typ, flags, len(payload), stream}.put(b)
		return append(b, payload...)
	}
	f.Add(slices.Concat(frame(typeOpen, 1, 1, "head"), frame(typeData, 0, 1, "data"), frame(typeCredit, 0, 1, "\x00\x00\x01\x00"),
		frame(typeDgram, 0, 1, "now"), frame(typeFin, 0, 1, ""), frame(typeReset, 1, 1, "\x00\x00\x00\x05")))
	f.Add(slices.Concat(frame(typePing, 0, 0, "12345678"), frame(typePong, 0, 0, "12345678"), frame(typeAck, 0, 0, "\x00\x00\x00\x00\x00\x00\x00\x00"),
		frame(typeGoAway, 0, 0, "\x00\x00\x00\x09"), frame(0x81, 0, 3, "later")))
	f.Add(slices.Concat(frame(typeOpen, 0, 3, ""), frame(typeReset, 0, 3, "\x00\x00\x00\x05"), frame(typeData, 0, 3, "late"), frame(typeEnd, 0, 0, "\x00\x00\x00\x00")))
	f.Fuzz(func(t *testing.T, data []byte) {
		a, b := net.Pipe()
		h := hello{version: version, flags: flagNew, epoch: 1, streamWindow: 100, sessionWindow: 1000, streams: 3}
		go func() {
			_, _ = a.Write(append(h.frame(), data...)) // the server may hang up
			a.Close()
		}()
		go func() { _, _ = io.Copy(io.Discard, a) }()
		s, _, err := Server(context.Background(), b, func(ID) *Session { return nil }, Config{MaxStreams: 3, Linger: time.Millisecond})
		if err != nil {
			return // the client had hung up before the answer
		}
		for {
			in, err := s.Accept(context.Background())
			if err != nil {
				break
			}
			st := in.Accept()
			_, _ = st.Write([]byte("answer of some bytes")[:min(20, len(in.Header))])
			_ = st.CloseWrite()
		}
		s.Close(CodeClosed)
		if v := s.Stats(); v.Streams != 0 || v.Unacked != 0 {
			t.Fatalf("%+v", v)
		}
	})
}
