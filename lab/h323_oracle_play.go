//go:build lab

package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/internal/tpkt"
	"edged.dev/edged/pkg/h323/h245"
	"edged.dev/edged/pkg/h323/q931"
	"edged.dev/edged/pkg/h323/ras"
)

// lineTime is how long a message may take through a gateway before it counts as lost.
const lineTime = 6 * time.Second

var errLost = errors.New("lost")

// edited is a message under edit.
type edited struct {
	ed   *per.Editor
	tree *per.Tree
}

func (e *edited) set(a h245.Address, to netip.AddrPort) error { return a.Set(e.ed, e.tree, to) }

// h323Stage is a gateway with a host of each party.
type h323Stage struct {
	host [2]*Host
	// target is where the caller calls, gatekeeper where it registers.
	target, gatekeeper netip.AddrPort
	gw                 *Host
	end                func() // may be nil
}

// performance is one dialogue on a stage.
type performance struct {
	*h323Stage
	d     *dialogue
	conns [][2]net.Conn // by channel and party; nil before its first line
	dead  []bool
	ln    []*net.TCPListener
	// told is what a party was told in the place of an address.
	told map[netip.AddrPort]netip.AddrPort
	// answer is where the gatekeeper's datagrams go; seq has the numbers that each party has seen, by those of the recording.
	answer net.Addr
	seq    [2]map[int64]int64
	fates  []fate
}

// play holds the dialogue, and returns what became of its addresses and which messages did not arrive.
func (s *h323Stage) play(d *dialogue) (fates []fate, lost []string) {
	p := &performance{
		h323Stage: s, d: d, conns: make([][2]net.Conn, len(d.channels)), ln: make([]*net.TCPListener, len(d.channels)), dead: make([]bool, len(d.channels)),
		told: map[netip.AddrPort]netip.AddrPort{}, seq: [2]map[int64]int64{{}, {}},
	}
	defer p.close()
	ended := false
	for _, l := range d.lines {
		got, err := p.say(l)
		ended = ended || d.channels[l.channel].kind == callSignalling && q931.Type(l.payload[4]) == q931.ReleaseComplete
		if err != nil && !ended { // what is said after the end may find nobody
			lost = append(lost, fmt.Sprintf("%v: %x", err, l.payload[:min(len(l.payload), 16)]))
		}
		p.judge(l, got)
	}
	return p.fates, lost
}

func (p *performance) close() {
	for i, pair := range p.conns {
		for _, c := range pair {
			if c != nil {
				c.Close()
			}
		}
		if p.ln[i] != nil {
			p.ln[i].Close()
		}
	}
}

// say sends a message and returns it as it arrives.
func (p *performance) say(l line) ([]byte, error) {
	ch := p.d.channels[l.channel]
	if p.dead[l.channel] {
		return nil, errLost
	}
	if ch.kind == registration {
		return p.datagram(l, ch)
	}
	b, err := p.segment(l, ch)
	p.dead[l.channel] = err != nil
	return b, err
}

func (p *performance) segment(l line, ch channel) ([]byte, error) {
	if p.ln[l.channel] == nil {
		if err := p.connect(l.channel, ch); err != nil {
			return nil, err
		}
	}
	from, err := p.end(l.channel, ch, l.from)
	if err != nil {
		return nil, err
	}
	b, err := p.echo(l, ch)
	if err == nil {
		b, err = tpkt.Append(nil, 0, b)
	}
	if err == nil {
		_, err = from.Write(b)
	}
	if err != nil {
		return nil, err
	}
	to, err := p.end(l.channel, ch, l.from.other())
	if err != nil {
		return nil, err
	}
	return receiveTPKT(to)
}

// echo returns a message with the other party's addresses as the one who speaks has been told them.
func (p *performance) echo(l line, ch channel) ([]byte, error) {
	b, _, err := readdress(ch.kind, l.payload, func(a h245.Address) (netip.AddrPort, bool) {
		to, ok := p.told[a.AddrPort]
		return to, ok && a.AddrPort.Addr() == p.host[l.from.other()].IP
	})
	return b, err
}

// end returns a party's end of a channel. The gateway may connect to the server only when it knows for what.
func (p *performance) end(i int, ch channel, of party) (net.Conn, error) {
	if p.conns[i][of] == nil && of == ch.server {
		_ = p.ln[i].SetDeadline(time.Now().Add(lineTime))
		c, err := p.ln[i].Accept()
		if err != nil {
			return nil, err
		}
		p.conns[i][of] = c
	}
	return p.conns[i][of], nil
}

func receiveTPKT(c net.Conn) ([]byte, error) {
	_ = c.SetReadDeadline(time.Now().Add(lineTime))
	var header [4]byte
	if _, err := io.ReadFull(c, header[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(header[2:]))
	if header[0] != 3 || n < 4 {
		return nil, fmt.Errorf("no TPKT: %x", header)
	}
	b := make([]byte, n-4)
	_, err := io.ReadFull(c, b)
	return b, err
}

// connect makes a connection: for H.245, to where the client was told.
func (p *performance) connect(i int, ch channel) error {
	at := netip.AddrPortFrom(p.host[ch.server].IP, ch.port)
	to := p.target
	if ch.kind == controlChannel {
		to = p.told[at]
	}
	if !to.IsValid() {
		return errLost
	}
	if err := p.host[ch.server].Do(func() (err error) {
		// A process that another case starts has the port of the dialogue before for a moment, between fork and exec.
		until(lineTime, func() bool {
			p.ln[i], err = net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(at))
			return !errors.Is(err, syscall.EADDRINUSE)
		})
		return err
	}); err != nil {
		return err
	}
	client := ch.server.other()
	return p.host[client].Do(func() error {
		c, err := net.DialTimeout("tcp4", to.String(), lineTime)
		if err == nil {
			p.conns[i][client] = c
		}
		return err
	})
}

// datagram sends one of RAS. Replies bear the number that the request had when it arrived.
func (p *performance) datagram(l line, ch channel) ([]byte, error) {
	for of, at := range [2]netip.AddrPort{
		caller: netip.AddrPortFrom(p.host[caller].IP, ch.client), callee: netip.AddrPortFrom(p.host[callee].IP, ch.port),
	} {
		if p.conns[l.channel][of] != nil {
			continue
		}
		if err := p.host[of].Do(func() (err error) {
			var c *net.UDPConn
			until(lineTime, func() bool { // as in connect
				c, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
				return !errors.Is(err, syscall.EADDRINUSE)
			})
			if err == nil {
				p.conns[l.channel][of] = c
			}
			return err
		}); err != nil {
			return nil, err
		}
	}
	number, payload, err := renumber(l.payload, p.seq[l.from])
	if err != nil {
		return nil, err
	}
	to := p.answer
	if l.from == caller {
		to = net.UDPAddrFromAddrPort(p.gatekeeper)
	}
	if to == nil {
		return nil, errLost // the gatekeeper was not asked yet
	}
	if _, err := p.conns[l.channel][l.from].(*net.UDPConn).WriteTo(payload, to); err != nil {
		return nil, err
	}
	got, err := p.arrives(l)
	if err != nil {
		return nil, err
	}
	seen, _, err := renumber(got, nil)
	p.seq[l.from.other()][number] = seen
	return got, err
}

// arrives returns the datagram that the receiver of a line gets.
func (p *performance) arrives(l line) ([]byte, error) {
	c := p.conns[l.channel][l.from.other()].(*net.UDPConn)
	_ = c.SetReadDeadline(time.Now().Add(lineTime))
	buf := make([]byte, 4096)
	n, from, err := c.ReadFrom(buf)
	if err == nil && l.from == caller {
		p.answer = from
	}
	return buf[:n], err
}

// renumber returns the requestSeqNum of a message, and the message with the one that is known in its place.
func renumber(b []byte, known map[int64]int64) (int64, []byte, error) {
	c := ras.NewCodec()
	m, err := c.Decode(b)
	if err != nil {
		return 0, nil, err
	}
	r := m.Tree.Child(m.Body, "requestSeqNum")
	n := m.Tree.Int(r)
	if to, ok := known[n]; ok && to != n {
		if err := c.Editor().SetInt(r, to); err != nil {
			return 0, nil, err
		}
	}
	out, err := c.Apply(nil)
	return n, out, err
}

// judge says what became of each address of a message. The same field may stand there several times, in the same order.
func (p *performance) judge(l line, got []byte) {
	kind := p.d.channels[l.channel].kind
	same := func(h245.Address) (netip.AddrPort, bool) { return netip.AddrPort{}, false }
	_, said, err := readdress(kind, l.payload, same)
	if err != nil || len(said) == 0 {
		return
	}
	_, heard, err := readdress(kind, got, same)
	lost := got == nil || err != nil
	for _, s := range said {
		f := fate{where: s.where, outward: p.host[l.from].Side == inside, whose: p.whose(s.addr, l.from), became: "removed"}
		i := slices.IndexFunc(heard, func(h named) bool { return h.where == s.where })
		switch {
		case lost:
			f.became = "lost"
		case i >= 0:
			p.told[s.addr] = heard[i].addr
			f.became = p.became(s.addr, heard[i].addr, l.from.other())
			heard = slices.Delete(heard, i, i+1)
		}
		p.fates = append(p.fates, f)
	}
}

func (p *performance) whose(a netip.AddrPort, from party) string {
	switch {
	case a.Addr() == p.host[from].IP:
		return "sender"
	case a.Addr() == p.host[from.other()].IP:
		return "receiver"
	case a.Addr().IsUnspecified() || a.Port() == 0:
		return "nobody"
	}
	return "other"
}

func (p *performance) became(was, is netip.AddrPort, to party) string {
	switch is.Addr() {
	case was.Addr():
		if was == is {
			return "kept"
		}
		return "other port"
	case p.gw.IPOn(p.host[to].Side, 4):
		return "gateway"
	case p.host[to].IP:
		return "receiver"
	}
	return "other"
}
