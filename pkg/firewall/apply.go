package firewall

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Apply puts the rules in place of whatever the table held, in one transaction, and the policy routing beside it. Applying
// again changes nothing. It needs CAP_NET_ADMIN; what an earlier version left half done, for example when it was
// killed, is replaced too.
func Apply(r Rules) error {
	if err := r.Validate(); err != nil {
		return err
	}
	if err := route(r); err != nil { // first: what is marked already finds its way
		return err
	}
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	table := &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet}
	conn.AddTable(table) // so that there is one to delete
	conn.DelTable(table)
	table = conn.AddTable(table)
	accept := nftables.ChainPolicyAccept
	chain := conn.AddChain(&nftables.Chain{
		Name: chainName, Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityMangle, Policy: &accept,
	})
	for _, x := range r.Redirects {
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: x.exprs(r.Config.Mark)})
	}
	if r.Guard {
		if err := r.addGuard(conn, table, chain); err != nil {
			return err
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("nftables: table inet %s: %w", TableName, explain(err))
	}
	return nil
}

// Remove takes away what Apply has put: the table, the rule and the route of its mark and routing table. It is no error if
// there is nothing.
func Remove(c Config) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	table := &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet}
	conn.AddTable(table)
	conn.DelTable(table)
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("nftables: table inet %s: %w", TableName, explain(err))
	}
	return unroute(Rules{Config: c})
}

// explain says what is missing where the kernel only says no.
func explain(err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("the capability CAP_NET_ADMIN is missing: %w", err)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("the kernel lacks what is needed (nf_tables, nft_tproxy, nft_fib_inet): %w", err)
	}
	return err
}

// exprs is what [Redirect.text] says, as the kernel wants it.
func (x Redirect) exprs(mark uint32) []expr.Any {
	proto, family, address := byte(unix.IPPROTO_TCP), byte(unix.NFPROTO_IPV4), x.To.Addr().AsSlice()
	if x.Proto == "udp" {
		proto = unix.IPPROTO_UDP
	}
	if x.To.Addr().Is6() {
		family = unix.NFPROTO_IPV6
	}
	name := make([]byte, maxInterface+1)
	copy(name, x.Interface)
	port := binary.BigEndian.AppendUint16(nil, x.To.Port())
	equals := func(data []byte) *expr.Cmp { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, equals(name),
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, equals([]byte{family}),
		&expr.Fib{Register: 1, ResultADDRTYPE: true, FlagDADDR: true}, equals(binaryutil.NativeEndian.PutUint32(unix.RTN_UNICAST)),
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equals([]byte{proto}),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}, equals(port),
		&expr.Immediate{Register: 1, Data: address}, &expr.Immediate{Register: 2, Data: port},
		&expr.TProxy{Family: family, TableFamily: unix.NFPROTO_INET, RegAddr: 1, RegPort: 2},
		&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint32(mark)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
		&expr.Verdict{Kind: expr.VerdictAccept},
	}
}
