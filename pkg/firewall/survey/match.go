package survey

import (
	"bytes"
	"encoding/binary"
	"net"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// truth is what is known of a condition.
type truth int

const (
	unknown truth = iota
	yes
	no
)

func truthOf(b bool) truth {
	if b {
		return yes
	}
	return no
}

// not turns a truth round if invert says so.
func (t truth) not(invert bool) truth {
	if !invert || t == unknown {
		return t
	}
	return truthOf(t == no)
}

// registers are the kernel's 64 octets in which a rule computes, and which of them are known.
type registers struct {
	data  [64]byte
	known [64]bool
}

// at returns where a register begins: four of 16 octets (1-4), or sixteen of 4 (8-23), which are the same (nf_tables.h).
func at(register uint32) int {
	switch {
	case register >= 1 && register <= 4:
		return int(register-1) * 16
	case register >= 8 && register <= 23:
		return int(register-8) * 4
	}
	return -1
}

// put stores known octets; the rest of the last four is zero, as the kernel has it.
func (r *registers) put(register uint32, data []byte) {
	i := at(register)
	if i < 0 {
		return
	}
	for n := range (len(data) + 3) / 4 * 4 {
		if i+n >= len(r.data) {
			return
		}
		r.data[i+n], r.known[i+n] = 0, true
		if n < len(data) {
			r.data[i+n] = data[n]
		}
	}
}

// forget makes octets unknown.
func (r *registers) forget(register uint32, length int) {
	if i := at(register); i >= 0 {
		for n := i; n < min(i+length, len(r.known)); n++ {
			r.known[n] = false
		}
	}
}

// get returns octets, and whether all are known.
func (r *registers) get(register uint32, length int) ([]byte, bool) {
	i := at(register)
	if i < 0 || i+length > len(r.data) {
		return nil, false
	}
	return r.data[i : i+length], !slices.Contains(r.known[i:i+length], false)
}

// matches tells whether a rule matches a packet, whatever it then does.
func (t *ruleTable) matches(r *nftables.Rule, p Packet) truth {
	m, _, _ := t.judge(r, p)
	return m
}

// judge tells whether a rule matches a packet and what it says of it; target is the chain of a jump.
func (t *ruleTable) judge(r *nftables.Rule, p Packet) (m truth, v verdict, target string) {
	var regs registers
	m = yes
	for _, e := range r.Exprs {
		switch x := e.(type) {
		case *expr.Verdict:
			v, target = verdictOf(x)
		case *expr.Reject:
			v = drops
		case *expr.NAT:
			if x.Type == expr.NATTypeDestNAT {
				v = diverts
			}
		case *expr.Redir:
			v = diverts
		case *expr.Target:
			v = targetOf(x, v)
		case *expr.Lookup:
			found, end := t.lookup(&regs, x)
			if end != nil {
				v, target = verdictOf(end)
			}
			if x.IsDestRegSet && x.DestRegister == unix.NFT_REG_VERDICT && end == nil && found != no {
				return unknown, drops, "" // a map of verdicts that cannot be judged: any of them
			}
			m = and(m, found)
		default:
			m = and(m, compute(&regs, e, p))
		}
		if m == no {
			return no, goesOn, ""
		}
	}
	return m, v, target
}

func and(a, b truth) truth {
	if a == no || b == no {
		return no
	}
	if a == unknown || b == unknown {
		return unknown
	}
	return yes
}

// targetOf reads the targets of iptables that are not written as nftables' own.
func targetOf(x *expr.Target, v verdict) verdict {
	switch x.Name {
	case "REJECT", "DROP":
		return drops
	case "ACCEPT":
		return accepts
	case "DNAT", "REDIRECT":
		return diverts
	}
	return v // LOG, CT, MARK, TPROXY, …: the packet goes on
}

// compute runs one expression: it loads a register, or says whether a condition holds.
func compute(regs *registers, e expr.Any, p Packet) truth {
	switch x := e.(type) {
	case *expr.Meta:
		loadMeta(regs, x, p)
	case *expr.Payload:
		loadPayload(regs, x, p)
	case *expr.Ct:
		if x.SourceRegister {
			return yes
		}
		regs.forget(x.Register, 16)
		if x.Key == expr.CtKeySTATE {
			regs.put(x.Register, binaryutil.NativeEndian.PutUint32(expr.CtStateBitNEW))
		}
	case *expr.Fib:
		loadFib(regs, x, p)
	case *expr.Immediate:
		regs.put(x.Register, x.Data)
	case *expr.Bitwise:
		data, known := regs.get(x.SourceRegister, int(x.Len))
		out := make([]byte, len(data))
		for i := range out {
			out[i] = data[i]&byteAt(x.Mask, i) ^ byteAt(x.Xor, i)
		}
		if regs.forget(x.DestRegister, int(x.Len)); known {
			regs.put(x.DestRegister, out)
		}
	case *expr.Cmp:
		return compare(regs, x)
	case *expr.Range:
		data, known := regs.get(x.Register, len(x.FromData))
		if !known {
			return unknown
		}
		within := bytes.Compare(data, x.FromData) >= 0 && bytes.Compare(data, x.ToData) <= 0
		return truthOf(within).not(x.Op == expr.CmpOpNeq)
	case *expr.Limit:
		return truthOf(!x.Over)
	case *expr.Match:
		return matchCompat(x, p)
	case *expr.Connlimit, *expr.Quota, *expr.Hash, *expr.Numgen, *expr.Exthdr:
		return unknown
	}
	return yes
}

func byteAt(b []byte, i int) byte {
	if i < len(b) {
		return b[i]
	}
	return 0
}

func compare(regs *registers, x *expr.Cmp) truth {
	data, known := regs.get(x.Register, len(x.Data))
	if !known {
		return unknown
	}
	c := bytes.Compare(data, x.Data)
	switch x.Op {
	case expr.CmpOpEq:
		return truthOf(c == 0)
	case expr.CmpOpNeq:
		return truthOf(c != 0)
	case expr.CmpOpLt:
		return truthOf(c < 0)
	case expr.CmpOpLte:
		return truthOf(c <= 0)
	case expr.CmpOpGt:
		return truthOf(c > 0)
	}
	return truthOf(c >= 0)
}

func (p Packet) protocol() byte {
	if p.Proto == "udp" {
		return unix.IPPROTO_UDP
	}
	return unix.IPPROTO_TCP
}

func loadMeta(regs *registers, x *expr.Meta, p Packet) {
	if x.SourceRegister {
		return
	}
	regs.forget(x.Register, 16)
	name := func(s string) []byte { return append([]byte(s), make([]byte, 16-min(len(s), 15))...)[:16] }
	index := func(s string) {
		if link, err := net.InterfaceByName(s); err == nil {
			regs.put(x.Register, binaryutil.NativeEndian.PutUint32(uint32(link.Index)))
		}
	}
	switch x.Key {
	case expr.MetaKeyIIFNAME:
		regs.put(x.Register, name(p.In))
	case expr.MetaKeyOIFNAME:
		regs.put(x.Register, name(p.Out))
	case expr.MetaKeyIIF:
		index(p.In)
	case expr.MetaKeyOIF:
		index(p.Out)
	case expr.MetaKeyL4PROTO:
		regs.put(x.Register, []byte{p.protocol()})
	case expr.MetaKeyNFPROTO:
		regs.put(x.Register, []byte{map[bool]byte{false: unix.NFPROTO_IPV4, true: unix.NFPROTO_IPV6}[p.To.Addr().Is6()]})
	case expr.MetaKeyPROTOCOL:
		regs.put(x.Register, binary.BigEndian.AppendUint16(nil, map[bool]uint16{false: unix.ETH_P_IP, true: unix.ETH_P_IPV6}[p.To.Addr().Is6()]))
	case expr.MetaKeyMARK:
		regs.put(x.Register, binaryutil.NativeEndian.PutUint32(p.Mark))
	case expr.MetaKeyPKTTYPE:
		regs.put(x.Register, []byte{unix.PACKET_HOST})
	}
}

// loadPayload reads headers as far as they are known: addresses, protocol, destination port, and that a TCP segment is a SYN.
func loadPayload(regs *registers, x *expr.Payload, p Packet) {
	regs.forget(x.DestRegister, int(x.Len))
	put := func(offset uint32, data []byte) {
		if x.Offset >= offset && uint64(x.Offset)+uint64(x.Len) <= uint64(offset)+uint64(len(data)) {
			regs.put(x.DestRegister, data[x.Offset-offset:][:x.Len])
		}
	}
	destination, source, protocol := uint32(16), uint32(12), uint32(9)
	if p.To.Addr().Is6() {
		destination, source, protocol = 24, 8, 6
	}
	switch x.Base {
	case expr.PayloadBaseNetworkHeader:
		put(destination, p.To.Addr().AsSlice())
		put(protocol, []byte{p.protocol()})
		if p.From.IsValid() && p.From.Is6() == p.To.Addr().Is6() {
			put(source, p.From.AsSlice())
		}
	case expr.PayloadBaseTransportHeader:
		put(2, binary.BigEndian.AppendUint16(nil, p.To.Port()))
		if p.Proto == "tcp" {
			put(13, []byte{2})
		}
	}
}

// loadFib looks where routes lead: the destination is this machine, or another if the packet is forwarded; the sender is where it should be.
func loadFib(regs *registers, x *expr.Fib, p Packet) {
	regs.forget(x.Register, 16)
	switch {
	case x.ResultADDRTYPE && x.FlagDADDR:
		regs.put(x.Register, binaryutil.NativeEndian.PutUint32(map[bool]uint32{false: unix.RTN_LOCAL, true: unix.RTN_UNICAST}[p.Out != ""]))
	case x.ResultOIF && x.FlagSADDR:
		regs.put(x.Register, binaryutil.NativeEndian.PutUint32(1))
	}
}

// lookup tells whether a set has the key; end is the verdict that a map has for it.
func (t *ruleTable) lookup(regs *registers, x *expr.Lookup) (found truth, end *expr.Verdict) {
	elements, ok := t.sets[x.SetName]
	if !ok {
		return unknown, nil
	}
	if len(elements) == 0 {
		return no.not(x.Invert), nil
	}
	key, known := regs.get(x.SourceRegister, len(elements[0].Key))
	if !known {
		return unknown, nil
	}
	e := find(elements, key, t.spans[x.SetName])
	switch {
	case e == nil:
		return no.not(x.Invert), nil
	case x.IsDestRegSet && x.DestRegister == unix.NFT_REG_VERDICT:
		return yes, verdictIn(e.Val)
	case x.IsDestRegSet:
		regs.put(x.DestRegister, e.Val)
	}
	return yes.not(x.Invert), nil
}

// verdictIn reads the verdict of a map's element: the netlink attributes code and chain (nf_tables.h), nil if there is none.
func verdictIn(data []byte) *expr.Verdict {
	const align = 4 // the parser takes for granted that the last attribute is padded
	attrs, err := nl.ParseRouteAttr(append(bytes.Clone(data), make([]byte, (align-len(data)%align)%align)...))
	if err != nil {
		return nil
	}
	var v expr.Verdict
	ok := false
	for _, a := range attrs {
		switch {
		case a.Attr.Type == unix.NFTA_VERDICT_CODE && len(a.Value) >= 4:
			v.Kind, ok = expr.VerdictKind(int32(binary.BigEndian.Uint32(a.Value))), true
		case a.Attr.Type == unix.NFTA_VERDICT_CHAIN:
			v.Chain = string(bytes.TrimRight(a.Value, "\x00"))
		}
	}
	if !ok {
		return nil
	}
	return &v
}

// find returns the element that holds a key. The intervals of a set are two elements each, its beginning and what is
// after its end, but those of concatenations one with both ends.
func find(elements []nftables.SetElement, key []byte, spans bool) *nftables.SetElement {
	var best *nftables.SetElement
	for i := range elements {
		e := &elements[i]
		switch {
		case len(e.Key) != len(key):
		case len(e.KeyEnd) == len(key):
			if within(key, e.Key, e.KeyEnd) {
				return e
			}
		case !spans:
			if bytes.Equal(e.Key, key) {
				return e
			}
		case bytes.Compare(e.Key, key) <= 0 && (best == nil || bytes.Compare(best.Key, e.Key) < 0 || bytes.Equal(best.Key, e.Key) && best.IntervalEnd):
			best = e
		}
	}
	if best == nil || best.IntervalEnd {
		return nil
	}
	return best
}

// within compares the fields of a concatenation, each of four octets.
func within(key, from, to []byte) bool {
	for i := 0; i+4 <= len(key); i += 4 {
		if bytes.Compare(key[i:i+4], from[i:i+4]) < 0 || bytes.Compare(key[i:i+4], to[i:i+4]) > 0 {
			return false
		}
	}
	return true
}

// matchCompat runs a match of iptables.
func matchCompat(x *expr.Match, p Packet) truth {
	in := func(r [2]uint16) bool { return p.To.Port() >= r[0] && p.To.Port() <= r[1] }
	switch info := x.Info.(type) {
	case *xt.Comment:
		return yes
	case *xt.Udp:
		if info.SrcPorts != anyPort() {
			return and(truthOf(p.Proto == "udp"), unknown)
		}
		return and(truthOf(p.Proto == "udp"), truthOf(in(info.DstPorts)).not(info.InvFlags&xt.UdpInvDestPorts != 0))
	case *xt.Tcp:
		if info.SrcPorts != anyPort() {
			return and(truthOf(p.Proto == "tcp"), unknown)
		}
		return and(truthOf(p.Proto == "tcp"), truthOf(in(info.DstPorts)).not(info.InvFlags&xt.TcpInvDestPorts != 0))
	case *xt.ConntrackMtinfo3:
		return stateOf(info.MatchFlags, info.InvertFlags, info.StateMask)
	case *xt.ConntrackMtinfo2:
		return stateOf(info.MatchFlags, info.InvertFlags, info.StateMask)
	case *xt.ConntrackMtinfo1:
		return stateOf(info.MatchFlags, info.InvertFlags, uint16(info.StateMask))
	case *xt.Unknown:
		if x.Name == "multiport" {
			return multiport(*info, p)
		}
		if x.Name == "limit" {
			return yes
		}
	}
	return unknown
}

func anyPort() [2]uint16 { return [2]uint16{0, 65535} }

// stateOf judges the conntrack match for a packet that begins something new. Its bit is 8 (xt_conntrack.h: 1 << (IP_CT_NEW + 1)).
func stateOf(flags, invert, mask uint16) truth {
	if flags != uint16(xt.ConntrackState) && flags != uint16(xt.ConntrackState|xt.ConntrackStateAlias) {
		return unknown
	}
	return truthOf(mask&8 != 0).not(invert&uint16(xt.ConntrackState) != 0)
}

// multiport judges the match of that name, revision 1: flags, count, 15 ports, for each whether a range begins there, inversion.
func multiport(info []byte, p Packet) truth {
	const ports, most = 2, 15
	if len(info) < ports+2*most+most+1 || info[0] == 0 || int(info[1]) > most { // 0: source ports
		return unknown
	}
	found := false
	for i := 0; i < int(info[1]); i++ {
		from := binaryutil.NativeEndian.Uint16(info[ports+2*i:])
		to := from
		if info[ports+2*most+i] != 0 && i+1 < int(info[1]) {
			i++
			to = binaryutil.NativeEndian.Uint16(info[ports+2*i:])
		}
		found = found || p.To.Port() >= from && p.To.Port() <= to
	}
	return truthOf(found).not(info[ports+2*most+most] != 0)
}
