package firewall

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Port is a port of the edge.
type Port struct {
	// Proto is tcp or udp.
	Proto string
	At    netip.AddrPort
}

// side is one of the two families: the end of the sets' names, and where a packet has its destination.
type side struct {
	v6                bool
	name, family, typ string
	nfproto           byte
	offset, len       uint32
	// registers are those of address, protocol and port, as one key.
	registers [3]uint32
}

// families are IPv4 and IPv6.
const families = 2

func sides() [families]side {
	return [families]side{
		{false, "4", "ip", "ipv4_addr", unix.NFPROTO_IPV4, 16, 4, [3]uint32{1, 9, 10}},
		{true, "6", "ip6", "ipv6_addr", unix.NFPROTO_IPV6, 24, 16, [3]uint32{1, 2, 13}},
	}
}

// The sets: what listens as long as the daemon runs, and what is open for a while.
const (
	listenersSet = "listeners"
	pinholesSet  = "pinholes"
)

// guardText is the sets of the rules and, apart, what the chain does with them.
func (r Rules) guardText() (sets, rules string) {
	if !r.Guard {
		return "", ""
	}
	var s, c strings.Builder
	for _, name := range []string{listenersSet, pinholesSet} {
		for _, f := range sides() {
			fmt.Fprintf(&s, "\tset %s%s {\n\t\ttype %s . inet_proto . inet_service\n", name, f.name, f.typ)
			if name == pinholesSet {
				s.WriteString("\t\tflags timeout\n")
			} else if list := f.only(r.Listeners); len(list) > 0 {
				var text []string
				for _, p := range list {
					text = append(text, fmt.Sprintf("%s . %s . %d", p.At.Addr(), p.Proto, p.At.Port()))
				}
				fmt.Fprintf(&s, "\t\telements = { %s }\n", strings.Join(text, ", "))
			}
			s.WriteString("\t}\n")
			fmt.Fprintf(&c, "\t\t%s daddr . meta l4proto . th dport @%s%s counter meta mark set %#x comment %q\n", f.family, name, f.name, r.Config.Mark, name)
		}
	}
	return s.String(), c.String()
}

// only returns the ports of the family.
func (f side) only(all []Port) []Port {
	var out []Port
	for _, p := range all {
		if p.At.Addr().Is6() == f.v6 {
			out = append(out, p)
		}
	}
	return out
}

// set describes a set to the kernel.
func (f side) set(table *nftables.Table, name string) *nftables.Set {
	address := nftables.TypeIPAddr
	if f.v6 {
		address = nftables.TypeIP6Addr
	}
	return &nftables.Set{
		Table: table, Name: name + f.name, Concatenation: true, HasTimeout: name == pinholesSet,
		KeyType: nftables.MustConcatSetType(address, nftables.TypeInetProto, nftables.TypeInetService),
	}
}

// element is the key of a port: address, protocol and port, each padded to four octets.
func element(p Port) nftables.SetElement {
	proto := byte(unix.IPPROTO_TCP)
	if p.Proto == "udp" {
		proto = unix.IPPROTO_UDP
	}
	key := append(p.At.Addr().AsSlice(), proto, 0, 0, 0, byte(p.At.Port()>>8), byte(p.At.Port()), 0, 0)
	return nftables.SetElement{Key: key}
}

// addGuard adds sets and rules to a transaction.
func (r Rules) addGuard(conn *nftables.Conn, table *nftables.Table, chain *nftables.Chain) error {
	for _, name := range []string{listenersSet, pinholesSet} {
		for _, f := range sides() {
			set := f.set(table, name)
			var elements []nftables.SetElement
			if name == listenersSet {
				for _, p := range f.only(r.Listeners) {
					elements = append(elements, element(p))
				}
			}
			if err := conn.AddSet(set, elements); err != nil {
				return fmt.Errorf("nftables: set %s: %w", set.Name, err)
			}
			conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: f.exprs(set, r.Config.Mark), UserData: comment(name)})
		}
	}
	return nil
}

// exprs marks what is for a port of the set.
func (f side) exprs(set *nftables.Set, mark uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{f.nfproto}},
		&expr.Payload{DestRegister: f.registers[0], Base: expr.PayloadBaseNetworkHeader, Offset: f.offset, Len: f.len},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: f.registers[1]},
		&expr.Payload{DestRegister: f.registers[2], Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: f.registers[0], SetName: set.Name, SetID: set.ID},
		&expr.Counter{},
		&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint32(mark)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
	}
}
