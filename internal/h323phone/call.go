package h323phone

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/internal/tpkt"
	"edged.dev/edged/pkg/h323/h225"
	"edged.dev/edged/pkg/h323/h245"
	"edged.dev/edged/pkg/h323/q931"
)

// Call is a call in progress.
type Call struct {
	phone      *Phone
	caller     bool
	signalling net.Conn
	open       chan struct{} // closed when both channels are open
	done       chan struct{} // closed when the other side has ended the call
	media      *media
	video      video // zero without Mode.Video
	data       *data

	mu      sync.Mutex // guards what follows
	ref     uint16
	id      h225.ID
	codec   *h225.Codec
	h245    net.Conn
	h245ln  net.Listener
	waiting [][]byte // H.245 until its connection is there
	state   State
	err     error
	closed  bool
}

// State is how far a call has come, for messages about one that failed.
type State struct {
	PeerTunnels, Connected, Fast        bool
	CapsSent, CapsAcked, Master, Opened bool
	// Sends and Receives tell which channels are open.
	Sends, Receives, Announced, Released bool
	Data                                 bool
	// Multiplexed tells that both sides put media onto shared ports.
	Multiplexed bool
}

func (p *Phone) newCall(conn net.Conn, caller bool) (*Call, error) {
	m, err := newMedia(p.addr, p.Mode.Traversal)
	if err != nil {
		conn.Close()
		return nil, err
	}
	var v video
	if p.Mode.Video {
		if v, err = newVideo(p.addr); err != nil {
			conn.Close()
			m.close()
			return nil, err
		}
	}
	return &Call{
		phone: p, caller: caller, signalling: conn, media: m, video: v, data: newData(p.addr), codec: h225.NewCodec(),
		open: make(chan struct{}), done: make(chan struct{}),
	}, nil
}

// write writes a TPKT in two segments.
func write(w io.Writer, payload []byte) error {
	b, err := tpkt.Append(nil, 0, payload)
	if err != nil {
		return err
	}
	if _, err := w.Write(b[:4]); err != nil {
		return err
	}
	_, err = w.Write(b[4:])
	return err
}

// read calls f with each payload until the connection ends.
func read(r io.Reader, f func([]byte) error) error {
	var header [4]byte
	for {
		if _, err := io.ReadFull(r, header[:]); err != nil {
			return err
		}
		n := int(binary.BigEndian.Uint16(header[2:]))
		if header[0] != 3 || n < 4 {
			return fmt.Errorf("no TPKT: %x", header)
		}
		b := make([]byte, n-4)
		if _, err := io.ReadFull(r, b); err != nil {
			return err
		}
		if err := f(b); err != nil {
			return err
		}
	}
}

// run reads call signalling until the call ends.
func (c *Call) run() {
	err := read(c.signalling, func(b []byte) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.message(b)
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
		c.err = err
	}
	close(c.done)
}

func (c *Call) failure() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return fmt.Errorf("%s: %w", c.phone.Name, c.err)
	}
	return fmt.Errorf("%s: the call was ended: %+v", c.phone.Name, c.state)
}

// message handles one message of call signalling.
func (c *Call) message(b []byte) error {
	m, err := c.codec.Decode(b)
	if err != nil {
		return err
	}
	if on, present := m.Tunnelling(); present {
		c.state.PeerTunnels = on
	}
	c.multiplexes(m)
	if m.Type == q931.Setup {
		c.ref = m.CallRef
		c.id, _ = m.CallID()
	}
	fast := m.FastStart(nil)
	answers, err := c.takeFast(m, fast)
	if err != nil {
		return err
	}
	peerH245 := netip.AddrPort{}
	for _, a := range m.Addresses(nil) {
		if a.Field == h245.H245Address {
			peerH245 = a.AddrPort
		}
	}
	var inside [][]byte
	for _, r := range m.Parallel(m.Tunnelled(nil)) {
		inside = append(inside, m.Tree.Octets(r))
	}
	kind, reason := m.Type, m.Reason()
	if kind == q931.ReleaseComplete {
		c.state.Released = true
		return fmt.Errorf("released: %s: %w", reason, io.EOF)
	}
	if err := c.step(kind, answers, peerH245); err != nil {
		return err
	}
	for _, b := range inside {
		if err := c.control(b); err != nil {
			return err
		}
	}
	return nil
}

// step does what a message calls for.
func (c *Call) step(kind q931.Type, answers []per.Value, peerH245 netip.AddrPort) error {
	if kind == q931.Setup {
		if err := c.answer(answers, peerH245); err != nil {
			return err
		}
	}
	if kind == q931.Connect {
		c.state.Connected = true
	}
	if peerH245.IsValid() && c.h245 == nil && !c.tunnels() {
		if err := c.dialH245(peerH245); err != nil {
			return err
		}
	}
	if c.state.Connected && !c.state.CapsSent && (c.tunnels() || c.h245 != nil) {
		return c.begin()
	}
	return nil
}

// tunnels tells whether both sides tunnel.
func (c *Call) tunnels() bool { return c.phone.Mode.Tunnelling && c.state.PeerTunnels }

// answer takes a call: CallProceeding, Alerting, Connect.
func (c *Call) answer(fast []per.Value, peerH245 netip.AddrPort) error {
	common := []per.Field{
		per.F("protocolIdentifier", per.Identifier(protocolID)), per.F("destinationInfo", endpoint()), c.callID(),
		per.F("multipleCalls", per.Truth(false)), per.F("maintainConnection", per.Truth(false)),
	}
	if c.phone.Mode.Multiplex {
		common = append(common, per.F("featureSet", per.Fields(per.F("replacementFeatureSet", per.Truth(false)),
			per.F("supportedFeatures", per.Elements(multiplexing())))))
	}
	if err := c.send(q931.CallProceeding, h225.CallProceeding, per.Fields(common...)); err != nil {
		return err
	}
	alerting := common
	if len(fast) > 0 {
		alerting = append(common[:len(common):len(common)], per.F("fastStart", per.Elements(fast...)))
	}
	if err := c.send(q931.Alerting, h225.Alerting, per.Fields(alerting...)); err != nil {
		return err
	}
	connect := append(common[:len(common):len(common)], per.F("conferenceID", per.Octet(c.id[:])))
	if !c.tunnels() && !peerH245.IsValid() {
		at, err := c.listenH245()
		if err != nil {
			return err
		}
		if !c.phone.Mode.Late {
			connect = append(connect, per.F("h245Address", h245.CallAddress(at)))
		}
	}
	c.state.Connected = true
	if err := c.send(q931.Connect, h225.Connect, per.Fields(connect...)); err != nil {
		return err
	}
	if !c.phone.Mode.Late || c.h245ln == nil {
		return nil
	}
	return c.send(q931.Facility, h225.Facility, per.Fields(
		per.F("protocolIdentifier", per.Identifier(protocolID)), per.F("reason", per.Alternative("startH245", per.Nothing())), c.callID(),
		per.F("h245Address", h245.CallAddress(c.h245ln.Addr().(*net.TCPAddr).AddrPort())),
		per.F("multipleCalls", per.Truth(false)), per.F("maintainConnection", per.Truth(false))))
}

// listenH245 waits for the other side's H.245 connection.
func (c *Call) listenH245() (netip.AddrPort, error) {
	var lc net.ListenConfig
	ln, err := lc.Listen(context.Background(), "tcp", netip.AddrPortFrom(c.phone.addr, 0).String())
	if err != nil {
		return netip.AddrPort{}, err
	}
	c.h245ln = ln
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		c.mu.Lock()
		err = c.join(conn)
		c.mu.Unlock()
		if err != nil {
			c.fail(err)
		}
	}()
	return ln.Addr().(*net.TCPAddr).AddrPort(), nil
}

func (c *Call) dialH245(to netip.AddrPort) error {
	d := net.Dialer{Timeout: dialTime, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(c.phone.addr, 0))}
	conn, err := d.Dial("tcp", to.String())
	if err != nil {
		return fmt.Errorf("h245: %w", err)
	}
	if err := c.join(conn); err != nil {
		return err
	}
	return c.sayWhose()
}

// join uses a connection for H.245.
func (c *Call) join(conn net.Conn) error {
	if c.closed || c.h245 != nil {
		return conn.Close()
	}
	c.h245 = conn
	for _, b := range c.waiting {
		if err := write(conn, b); err != nil {
			return err
		}
	}
	c.waiting = nil
	go func() {
		err := read(conn, func(b []byte) error {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.control(b)
		})
		if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
			c.fail(err)
		}
	}()
	if c.state.CapsSent {
		return nil
	}
	return c.begin()
}

// fail ends the call with an error.
func (c *Call) fail(err error) {
	c.mu.Lock()
	if c.err == nil && !c.state.Released {
		c.err = err
	}
	c.mu.Unlock()
	c.signalling.Close()
}

// Close ends the call without a word.
func (c *Call) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	errs := []error{ignoreClosed(c.signalling.Close())}
	if c.h245 != nil {
		errs = append(errs, ignoreClosed(c.h245.Close()))
	}
	if c.h245ln != nil {
		errs = append(errs, ignoreClosed(c.h245ln.Close()))
	}
	c.data.close()
	c.media.close()
	c.video.close()
	return errors.Join(errs...)
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
