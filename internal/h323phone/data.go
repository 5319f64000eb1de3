package h323phone

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/pkg/h323/h245"
)

// data is the T.120 connection of a call: an X.224 connection request and its confirm, then ten data TPDUs each way.
type data struct {
	addr netip.Addr
	mu   sync.Mutex
	ln   net.Listener
	conn net.Conn
	// Ready is closed when everything was exchanged.
	ready chan struct{}
}

const dataFrames = 10

func newData(at netip.Addr) *data { return &data{addr: at, ready: make(chan struct{})} }

// listen waits for the other side's connection.
func (d *data) listen() (netip.AddrPort, error) {
	var lc net.ListenConfig
	ln, err := lc.Listen(context.Background(), "tcp", netip.AddrPortFrom(d.addr, 0).String())
	if err != nil {
		return netip.AddrPort{}, err
	}
	d.mu.Lock()
	d.ln = ln
	d.mu.Unlock()
	go func() {
		if conn, err := ln.Accept(); err == nil {
			d.exchange(conn, false)
		}
	}()
	return ln.Addr().(*net.TCPAddr).AddrPort(), nil
}

func (d *data) dial(to netip.AddrPort) error {
	dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(d.addr, 0))}
	conn, err := dialer.Dial("tcp", to.String())
	if err != nil {
		return err
	}
	go d.exchange(conn, true)
	return nil
}

var (
	request = []byte{6, 0xe0, 0, 0, 0, 1, 0}         //nolint:gochecknoglobals // a constant
	confirm = []byte{6, 0xd0, 0, 1, 0, 2, 0}         //nolint:gochecknoglobals // a constant
	tpdu    = []byte("\x02\xf0\x80T.120 says hello") //nolint:gochecknoglobals // a constant
)

// exchange speaks on the connection; whoever dialled asks first.
func (d *data) exchange(conn net.Conn, dialled bool) {
	d.mu.Lock()
	d.conn = conn
	d.mu.Unlock()
	conn.SetDeadline(time.Now().Add(time.Minute))
	say, want := confirm, request
	if dialled {
		say, want = request, confirm
		if write(conn, say) != nil {
			return
		}
	}
	got := 0
	_ = read(conn, func(b []byte) error {
		switch {
		case got == 0 && !bytes.Equal(b, want), got > 0 && !bytes.Equal(b, tpdu):
			return io.ErrUnexpectedEOF
		case got == 0 && !dialled:
			if err := write(conn, say); err != nil {
				return err
			}
		}
		if got++; got > dataFrames {
			close(d.ready)
			return io.EOF
		}
		return write(conn, tpdu)
	})
}

func (d *data) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ln != nil {
		d.ln.Close()
	}
	if d.conn != nil {
		d.conn.Close()
	}
}

// Data is closed when ten data TPDUs have come by T.120.
func (c *Call) Data() <-chan struct{} { return c.data.ready }

func dataType() per.Value {
	return per.Alternative("data", per.Fields(
		per.F("application", per.Alternative("t120", per.Alternative("separateLANStack", per.Nothing()))),
		per.F("maxBitRate", per.Number(8250))))
}

// stack is where T.120 is listened for.
func stack(at netip.AddrPort, procedure string) per.Field {
	return per.F("separateStack", per.Fields(
		per.F("networkAddress", per.Alternative("localAreaAddress", h245.MediaAddress(at))),
		per.F("associateConference", per.Truth(false)),
		per.F("t120SetupProcedure", per.Alternative(procedure, per.Nothing()))))
}

// openData opens the T.120 channel: bidirectional, session 3 (H.323 §6.2.7.1).
func (c *Call) openData() error {
	h2250 := per.Alternative("h2250LogicalChannelParameters", per.Fields(per.F("sessionID", per.Number(3))))
	f := []per.Field{
		number(dataChannel),
		per.F("forwardLogicalChannelParameters", per.Fields(per.F("dataType", dataType()), per.F("multiplexParameters", h2250))),
		per.F("reverseLogicalChannelParameters", per.Fields(per.F("dataType", dataType()), per.F("multiplexParameters", h2250))),
	}
	if c.phone.Mode.T120 {
		at, err := c.data.listen()
		if err != nil {
			return err
		}
		f = append(f, stack(at, "originateCall"))
	}
	return c.say("request", h245.OpenLogicalChannel, per.Fields(f...))
}

// acceptData takes a T.120 channel: it connects to the address in the request, or names one in the acknowledgement.
func (c *Call) acceptData(ch h245.Channel) error {
	f := []per.Field{
		number(int64(ch.Number)),
		per.F("reverseLogicalChannelParameters", per.Fields(per.F("reverseLogicalChannelNumber", per.Number(dataChannel)),
			per.F("multiplexParameters", per.Alternative("h2250LogicalChannelParameters", per.Fields(per.F("sessionID", per.Number(3))))))),
	}
	if ch.SeparateStack.Valid() {
		if err := c.data.dial(ch.SeparateStack.AddrPort); err != nil {
			return err
		}
	} else {
		at, err := c.data.listen()
		if err != nil {
			return err
		}
		f = append(f, stack(at, "waitForCall"))
	}
	return c.say("response", h245.OpenLogicalChannelAck, per.Fields(f...))
}
