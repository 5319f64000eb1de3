package h323phone

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/internal/per/schema"
	"edged.dev/edged/pkg/h323/h245"
)

// data is the T.120 connection of a call: X.224's connection request and confirm, MCS's Connect-Initial with a
// conference of GCC in it and Connect-Response, then ten SendData each way.
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

// exchange speaks on the connection: each says one thing after the other has; who dialled begins.
func (d *data) exchange(conn net.Conn, dialled bool) {
	d.mu.Lock()
	d.conn = conn
	d.mu.Unlock()
	conn.SetDeadline(time.Now().Add(time.Minute))
	asks, answers, err := conference()
	if err != nil {
		return
	}
	say, want := answers, asks
	if dialled {
		say, want = asks, answers
		if write(conn, say[0]) != nil {
			return
		}
		say = say[1:]
	}
	_ = read(conn, func(b []byte) error {
		if !bytes.Equal(b, want[0]) {
			return io.ErrUnexpectedEOF
		}
		if want = want[1:]; len(say) > 0 {
			if err := write(conn, say[0]); err != nil {
				return err
			}
			say = say[1:]
		}
		if len(want) == 0 {
			close(d.ready)
			return io.EOF
		}
		return nil
	})
}

// conference returns what the side that connects says, and what the other answers, TPDU by TPDU (T.123 §8, T.125 §7 and
// T.124 §8).
func conference() (asks, answers [][]byte, err error) {
	create, err := connectData("conferenceCreateRequest",
		per.F("conferenceName", per.Fields(per.F("numeric", per.Text("1")), per.F("text", per.Text("Phones")))),
		per.F("lockedConference", per.Truth(false)), per.F("listedConference", per.Truth(true)), per.F("conductibleConference", per.Truth(false)),
		per.F("terminationMethod", per.Number(0)))
	if err != nil {
		return nil, nil, err
	}
	created, err := connectData("conferenceCreateResponse", per.F("nodeID", per.Number(1001)), per.F("tag", per.Number(1)), per.F("result", per.Number(0)))
	if err != nil {
		return nil, nil, err
	}
	domain := []byte{0x30, 0x1a, 2, 1, 34, 2, 1, 2, 2, 1, 0, 2, 1, 1, 2, 1, 0, 2, 1, 1, 2, 3, 0, 0xff, 0xff, 2, 1, 2}
	initial := slices.Concat([]byte{4, 1, 1, 4, 1, 1, 1, 1, 0xff}, domain, domain, domain, berOf([]byte{4}, create))
	response := slices.Concat([]byte{0x0a, 1, 0, 2, 1, 1}, domain, berOf([]byte{4}, created))
	asks = [][]byte{{6, 0xe0, 0, 0, 0, 1, 0}, dt(berOf([]byte{0x7f, 0x65}, initial))}
	answers = [][]byte{{6, 0xd0, 0, 1, 0, 2, 0}, dt(berOf([]byte{0x7f, 0x66}, response))}
	hello := []byte("T.120 says hello")
	for range dataFrames {
		// initiator 1001, channel 8, top priority, one segment
		asks = append(asks, dt(append([]byte{0x64, 0, 0, 0, 8, 0x30, byte(len(hello))}, hello...)))
		answers = append(answers, dt(append([]byte{0x68, 0, 0, 0, 8, 0x30, byte(len(hello))}, hello...)))
	}
	return asks, answers, nil
}

func connectData(name string, f ...per.Field) ([]byte, error) {
	return schema.Tables().Encode(nil, schema.T124ConnectData, per.Fields(
		per.F("t124Identifier", per.Alternative("object", per.Identifier("0.0.20.124.0.1"))),
		per.F("connectPDU", per.Encoded(per.Alternative(name, per.Fields(f...))))))
}

// berOf is an element with contents of less than 64 KiB.
func berOf(tag, contents []byte) []byte {
	return append(append(slices.Clone(tag), 0x82, byte(len(contents)>>8), byte(len(contents))), contents...)
}

// dt is a data TPDU.
func dt(b []byte) []byte { return append([]byte{2, 0xf0, 0x80}, b...) }

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

// Data is closed when a conference is up and ten SendData have come by T.120.
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
