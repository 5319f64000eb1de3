package main

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/stun/v4"

	"edged.dev/edged/bench/veth"
)

const (
	// atOnce is how many clients allocate at a time.
	atOnce = 16
	// warmth is how many allocate before it is measured, and how long data flows before.
	warmth, warm = 50, 300 * time.Millisecond
	// window is how many packets of a client are on their way, of payload octets each.
	window, payload = 16, 172
	channel         = 0x4000
	answerTime      = 2 * time.Second
)

// client is a TURN client.
type client struct {
	net.Conn
	stream bool
	nonce  stun.Nonce
	buf    [2048]byte
}

// dial makes a client on UDP or on TLS.
func (r *rig) dial(secure bool) (*client, error) {
	c := &client{stream: secure}
	err := veth.Within(r.Client, func() (err error) {
		if !secure {
			c.Conn, err = net.Dial("udp4", net.JoinHostPort(veth.NearIP, fmt.Sprint(udpPort)))
			return err
		}
		c.Conn, err = net.DialTimeout("tcp4", net.JoinHostPort(veth.NearIP, fmt.Sprint(tlsPort)), answerTime)
		return err
	})
	if err != nil {
		return nil, err
	}
	if secure {
		c.Conn = tls.Client(c.Conn, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12})
	}
	return c, nil
}

func (c *client) close() { _ = c.Close() }

// frame reads a datagram or a frame.
func (c *client) frame() ([]byte, error) {
	if !c.stream {
		n, err := c.Read(c.buf[:])
		return c.buf[:n], err
	}
	if _, err := io.ReadFull(c, c.buf[:4]); err != nil {
		return nil, err
	}
	n := 4 + int(binary.BigEndian.Uint16(c.buf[2:]))
	if c.buf[0]>>6 == 0 {
		n += 16
	}
	if n = (n + 3) &^ 3; n > len(c.buf) {
		return nil, errors.New("a frame is too long")
	}
	_, err := io.ReadFull(c, c.buf[4:n])
	return c.buf[:n], err
}

// ask sends a request and returns its answer. It is not repeated: nothing is lost here but where a server is too slow.
func (c *client) ask(m stun.Method, signed bool, attrs ...stun.Setter) (*stun.Message, error) {
	all := append([]stun.Setter{stun.TransactionID, stun.NewType(m, stun.ClassRequest)}, attrs...)
	if signed {
		all = append(all, stun.NewUsername(user), stun.NewRealm(realm), c.nonce, stun.NewLongTermIntegrity(user, realm, password))
	}
	q, err := stun.Build(all...)
	if err != nil {
		return nil, err
	}
	if err := c.SetDeadline(time.Now().Add(answerTime)); err != nil {
		return nil, err
	}
	if _, err := c.Write(q.Raw); err != nil {
		return nil, err
	}
	for {
		b, err := c.frame()
		if err != nil {
			return nil, err
		}
		a := &stun.Message{Raw: b}
		if a.Decode() == nil && a.TransactionID == q.TransactionID {
			return a, nil
		}
	}
}

func (c *client) binding() error {
	a, err := c.ask(stun.MethodBinding, false)
	if err == nil && a.Type.Class != stun.ClassSuccessResponse {
		err = fmt.Errorf("refused: %s", a.Type)
	}
	return err
}

// allocate logs in and allocates.
func (c *client) allocate() error {
	transport := stun.RawAttribute{Type: stun.AttrRequestedTransport, Value: []byte{17, 0, 0, 0}}
	a, err := c.ask(stun.MethodAllocate, false, transport)
	if err != nil {
		return err
	}
	if err := c.nonce.GetFrom(a); err != nil {
		return fmt.Errorf("challenge: %w", err)
	}
	c.nonce = slices.Clone(c.nonce) // it is part of the buffer
	if a, err = c.ask(stun.MethodAllocate, true, transport); err == nil && a.Type.Class != stun.ClassSuccessResponse {
		err = fmt.Errorf("refused: %s", a)
	}
	return err
}

// bind binds the channel to the peer.
func (c *client) bind() error {
	peer := stun.XORMappedAddress{IP: netip.MustParseAddr(veth.ServerIP).AsSlice(), Port: peerPort}
	number := stun.RawAttribute{Type: stun.AttrChannelNumber, Value: []byte{channel >> 8, channel & 0xFF, 0, 0}}
	a, err := c.ask(stun.MethodChannelBind, true, number, setter(func(m *stun.Message) error { return peer.AddToAs(m, stun.AttrXORPeerAddress) }))
	if err == nil && a.Type.Class != stun.ClassSuccessResponse {
		err = fmt.Errorf("refused: %s", a)
	}
	return err
}

// setter adds an attribute by a function.
type setter func(*stun.Message) error

// AddTo implements [stun.Setter].
func (s setter) AddTo(m *stun.Message) error { return s(m) }

// echo is the peer.
func (r *rig) echo() (stop func(), err error) {
	var pc *net.UDPConn
	err = veth.Within(r.Server, func() error {
		pc, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(veth.ServerIP), peerPort)))
		return err
	})
	if err != nil {
		return nil, err
	}
	var work sync.WaitGroup
	work.Go(func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := pc.ReadFromUDPAddrPort(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = pc.WriteToUDPAddrPort(buf[:n], from) // what is lost shrinks a window
			}
		}
	})
	return func() {
		pc.Close()
		work.Wait()
	}, nil
}

// allocations has clients on UDP allocate, and keep what they have.
func (r *rig) allocations(o options, f *figures) error {
	clients := make([]*client, o.allocations+warmth)
	defer func() {
		for _, c := range clients {
			if c != nil {
				c.close()
			}
		}
	}()
	for i := range clients {
		var err error
		if clients[i], err = r.dial(false); err != nil {
			return err
		}
	}
	if err := allocateAll(clients[:warmth]); err != nil {
		return err
	}
	memory, err := r.resident()
	if err != nil {
		return err
	}
	cpu, err := r.CPU()
	if err != nil {
		return err
	}
	began := time.Now()
	if err := allocateAll(clients[warmth:]); err != nil {
		return err
	}
	took := time.Since(began)
	after, err := r.CPU()
	if err != nil {
		return err
	}
	grown, err := r.resident()
	n := float64(o.allocations)
	f.allocations, f.allocation = n/took.Seconds(), float64((after-cpu).Microseconds())/n
	f.memory = float64(grown-memory) / n * 1000
	return err
}

// allocateAll has all of them allocate, atOnce at a time.
func allocateAll(clients []*client) error {
	var next atomic.Int64
	errs := make([]error, atOnce)
	var work sync.WaitGroup
	for w := range errs {
		work.Go(func() {
			for errs[w] == nil {
				i := int(next.Add(1)) - 1
				if i >= len(clients) {
					return
				}
				errs[w] = clients[i].allocate()
			}
		})
	}
	work.Wait()
	return errors.Join(errs...)
}

// overTLS has clients send by channels, each a window of packets that the peer echoes.
func (r *rig) overTLS(o options, f *figures) error {
	var echoed atomic.Int64
	var work sync.WaitGroup
	defer work.Wait()
	for range o.clients {
		c, err := r.dial(true)
		if err == nil {
			defer c.close()
			err = errors.Join(c.allocate(), c.bind(), c.SetDeadline(time.Time{}))
		}
		if err != nil {
			return err
		}
		work.Go(func() { c.flood(&echoed) })
	}
	time.Sleep(warm)
	cpu, err := r.CPU()
	if err != nil {
		return err
	}
	began, before := time.Now(), echoed.Load()
	time.Sleep(o.time)
	took, n := time.Since(began), float64(2*(echoed.Load()-before))
	after, err := r.CPU()
	if n == 0 {
		return errors.Join(err, errors.New("no packet came back"))
	}
	f.packets, f.packet = n/took.Seconds(), float64((after-cpu).Nanoseconds())/1000/n
	return err
}

// flood keeps a window of packets on their way until the connection is closed.
func (c *client) flood(echoed *atomic.Int64) {
	frame := make([]byte, 4+payload)
	binary.BigEndian.PutUint16(frame, channel)
	binary.BigEndian.PutUint16(frame[2:], payload)
	for range window {
		if _, err := c.Write(frame); err != nil {
			return
		}
	}
	for {
		b, err := c.frame()
		if err != nil {
			return
		}
		if b[0]>>6 != 1 {
			continue
		}
		echoed.Add(1)
		if _, err := c.Write(frame); err != nil {
			return
		}
	}
}
