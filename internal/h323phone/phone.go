package h323phone

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/pkg/h323/h225"
	"edged.dev/edged/pkg/h323/h245"
	"edged.dev/edged/pkg/h323/q931"
)

// protocolID is H.225.0 version 4, h245ID is H.245 version 7.
const (
	protocolID = "0.0.8.2250.0.4"
	h245ID     = "0.0.8.245.0.7"
)

// Mode says how a phone behaves.
type Mode struct {
	// FastStart proposes channels in Setup, and takes those of a Setup (H.323 §8.1.7).
	FastStart bool
	// Tunnelling carries H.245 in call signalling (H.323 §8.2.1) if the other wants it too.
	Tunnelling bool
	// H245InSetup names the H.245 address in Setup, so that the called party connects.
	H245InSetup bool
	// Late names the H.245 address only after Connect, in a Facility (startH245).
	Late bool
	// Traversal registers as an endpoint behind a NAT (H.460.18): it connects when the gatekeeper tells it of a call, and
	// sends media from where it receives (H.460.19).
	Traversal bool
	// Multiplex, with Traversal, puts its media onto ports that it shares with others, if the other side wants that too:
	// each packet begins with a multiplexID (H.460.19 §7.3).
	Multiplex bool
	// T120 opens a T.120 channel; T120InAck lets the other side name the address of one.
	T120, T120InAck bool
	// Video opens a channel for a camera; the called phone also presents (H.239).
	Video bool
}

// Phone waits for calls at one address.
type Phone struct {
	// Name is its h323-ID, Mode how it behaves. Both are set before the first call.
	Name string
	Mode Mode
	ln   net.Listener
	addr netip.Addr
}

// Listen makes a phone that takes calls at that address and port.
func Listen(at netip.AddrPort, name string, m Mode) (*Phone, error) {
	var lc net.ListenConfig
	ln, err := lc.Listen(context.Background(), "tcp", at.String())
	if err != nil {
		return nil, err
	}
	return &Phone{Name: name, Mode: m, ln: ln, addr: at.Addr()}, nil
}

// Addr is where it takes calls.
func (p *Phone) Addr() netip.AddrPort { return p.ln.Addr().(*net.TCPAddr).AddrPort() }

// Close stops taking calls.
func (p *Phone) Close() error { return p.ln.Close() }

// Call calls a name by way of the host at to, and returns when audio flows both ways or ctx ends.
func (p *Phone) Call(ctx context.Context, to netip.AddrPort, called string) (*Call, error) {
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(p.addr, 0))}
	conn, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	c, err := p.newCall(conn, true)
	if err != nil {
		return nil, err
	}
	var seed [2]byte
	_, _ = rand.Read(seed[:])
	c.ref = uint16(seed[0]&0x7f)<<8 | uint16(seed[1]) | 1
	_, _ = rand.Read(c.id[:])
	if err := c.setup(called, to); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c.until(ctx)
}

// Accept takes the next call, and returns when audio flows both ways or ctx ends.
func (p *Phone) Accept(ctx context.Context) (*Call, error) {
	if t, ok := p.ln.(*net.TCPListener); ok {
		if at, ok := ctx.Deadline(); ok {
			_ = t.SetDeadline(at)
		}
	}
	conn, err := p.ln.Accept()
	if err != nil {
		return nil, err
	}
	return p.take(ctx, conn)
}

// take answers a call on a connection.
func (p *Phone) take(ctx context.Context, conn net.Conn) (*Call, error) {
	c, err := p.newCall(conn, false)
	if err != nil {
		return nil, err
	}
	return c.until(ctx)
}

// until serves the call until its channels are open.
func (c *Call) until(ctx context.Context) (*Call, error) {
	go c.run()
	select {
	case <-c.open:
		return c, nil
	case <-c.done:
		err := c.failure()
		return nil, errors.Join(err, c.Close())
	case <-ctx.Done():
		c.mu.Lock()
		state := fmt.Sprintf("%+v", c.state)
		c.mu.Unlock()
		return nil, errors.Join(fmt.Errorf("%s: no audio: %w; %s", c.phone.Name, ctx.Err(), state), c.Close())
	}
}

func endpoint() per.Value {
	return per.Fields(per.F("terminal", per.Fields()), per.F("mc", per.Truth(false)), per.F("undefinedNode", per.Truth(false)))
}

func (c *Call) callID() per.Field {
	return per.F("callIdentifier", per.Fields(per.F("guid", per.Octet(c.id[:]))))
}

// setup sends Setup.
func (c *Call) setup(called string, to netip.AddrPort) error {
	f := []per.Field{
		per.F("protocolIdentifier", per.Identifier(protocolID)),
		per.F("sourceAddress", per.Elements(h225.H323ID(c.phone.Name))),
		per.F("sourceInfo", endpoint()),
		per.F("destinationAddress", per.Elements(h225.H323ID(called))),
		per.F("destCallSignalAddress", h245.CallAddress(to)),
		per.F("activeMC", per.Truth(false)),
		per.F("conferenceID", per.Octet(c.id[:])),
		per.F("conferenceGoal", per.Alternative("create", per.Nothing())),
		per.F("callType", per.Alternative("pointToPoint", per.Nothing())),
		per.F("sourceCallSignalAddress", h245.CallAddress(c.phone.Addr())),
		c.callID(),
		per.F("mediaWaitForConnect", per.Truth(false)), per.F("canOverlapSend", per.Truth(false)),
		per.F("multipleCalls", per.Truth(false)), per.F("maintainConnection", per.Truth(false)),
	}
	if c.phone.Mode.H245InSetup {
		at, err := c.listenH245()
		if err != nil {
			return err
		}
		f = append(f, per.F("h245Address", h245.CallAddress(at)))
	}
	if c.phone.Mode.Multiplex {
		f = append(f, per.F("supportedFeatures", per.Elements(multiplexing())))
	}
	if c.phone.Mode.FastStart {
		f = append(f, per.F("fastStart", c.proposals()))
	}
	return c.send(q931.Setup, h225.Setup, per.Fields(f...))
}

// send sends a message of call signalling. Its TPKT header goes in a segment of its own, as NetMeeting's does.
func (c *Call) send(t q931.Type, body h225.Body, v per.Value, more ...per.Field) error {
	more = append(more, per.F("h245Tunnelling", per.Truth(c.phone.Mode.Tunnelling)))
	var elements []q931.Element
	if t == q931.Setup {
		elements = append(elements, q931.Element{ID: q931.BearerCap, Contents: []byte{0x88, 0x93, 0xa5}})
	}
	b, err := h225.Build(nil, t, c.ref, !c.caller, elements, h225.Info(body, v, more...))
	if err != nil {
		return fmt.Errorf("%s: %w", body, err)
	}
	return write(c.signalling, b)
}

// Hangup ends the call by ReleaseComplete.
func (c *Call) Hangup() error {
	c.mu.Lock()
	c.state.Released = true
	err := c.send(q931.ReleaseComplete, h225.ReleaseComplete, per.Fields(
		per.F("protocolIdentifier", per.Identifier(protocolID)),
		per.F("reason", per.Alternative("undefinedReason", per.Nothing())), c.callID()))
	c.mu.Unlock()
	return errors.Join(err, c.Close())
}

// Ended waits until the other side has ended the call.
func (c *Call) Ended(ctx context.Context) error {
	select {
	case <-c.done:
		return c.Close()
	case <-ctx.Done():
		return fmt.Errorf("%s: the call goes on: %w", c.phone.Name, ctx.Err())
	}
}

const (
	// frame is how often audio is sent.
	frame = 20 * time.Millisecond
	// dialTime bounds the connection to an H.245 address.
	dialTime = 5 * time.Second
)
