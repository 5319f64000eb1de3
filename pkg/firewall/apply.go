package firewall

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// Apply puts the rules in place of whatever the table held, in one transaction, and the policy routing beside it. Applying
// again changes nothing. It needs CAP_NET_ADMIN; what an earlier version left half done, for example when it was
// killed, is replaced too.
func Apply(r Rules) error {
	if err := r.Validate(); err != nil {
		return err
	}
	if _, err := route(r); err != nil { // first: what is marked already finds its way
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
	for _, name := range r.Answers {
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: answerExprs(name, r.Config.Mark), UserData: comment(countedAnswers)})
	}
	for _, x := range r.Redirects {
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: x.exprs(r.Config.Mark), UserData: comment(x.Name)})
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

// ErrCapability says what the process lacks, and how it gets it.
var ErrCapability = errors.New("the capability CAP_NET_ADMIN is missing; systemd: AmbientCapabilities=CAP_NET_ADMIN in the unit; container: --cap-add NET_ADMIN; " +
	"by hand: setcap cap_net_admin,cap_net_bind_service+ep on the program")

// Capable returns [ErrCapability] unless the process may change the rules of its network namespace.
func Capable() error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	if data[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		return ErrCapability
	}
	return nil
}

// explain says what is missing where the kernel only says no.
func explain(err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: %w", ErrCapability, err)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("the kernel lacks what is needed (nf_tables, nft_tproxy, nft_socket, nft_fib_inet): %w", err)
	}
	return err
}

// comment is the name of a rule, as nft shows it.
func comment(name string) []byte { return userdata.AppendString(nil, userdata.TypeComment, name) }

func equals(data []byte) *expr.Cmp { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }

// from is what comes by an interface.
func from(name string) []expr.Any {
	b := make([]byte, maxInterface+1)
	copy(b, name)
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, equals(b)}
}

// forOthers is what is for a host, and not this one.
func forOthers() []expr.Any {
	return []expr.Any{&expr.Fib{Register: 1, ResultADDRTYPE: true, FlagDADDR: true}, equals(binaryutil.NativeEndian.PutUint32(unix.RTN_UNICAST))}
}

// marked counts and marks, and ends the chain.
func marked(mark uint32) []expr.Any {
	return []expr.Any{
		&expr.Counter{}, &expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint32(mark)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1}, &expr.Verdict{Kind: expr.VerdictAccept},
	}
}

// answerExprs hands what is for a socket of the edge's over, wherever that is bound.
func answerExprs(name string, mark uint32) []expr.Any {
	socket := []expr.Any{&expr.Socket{Key: expr.SocketKeyTransparent, Register: 1}, equals([]byte{1})}
	return slices.Concat(from(name), forOthers(), socket, marked(mark))
}

// exprs is what [Redirect.text] says, as the kernel wants it.
func (x Redirect) exprs(mark uint32) []expr.Any {
	proto, family, address := byte(unix.IPPROTO_TCP), byte(unix.NFPROTO_IPV4), x.To.Addr().AsSlice()
	if x.Proto == "udp" {
		proto = unix.IPPROTO_UDP
	}
	destination := &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4}
	if x.To.Addr().Is6() {
		family, destination.Offset, destination.Len = unix.NFPROTO_IPV6, 24, 16
	}
	port := binary.BigEndian.AppendUint16(nil, x.To.Port())
	var only []expr.Any
	if x.For.IsValid() {
		only = []expr.Any{destination, equals(x.For.AsSlice())}
	}
	return slices.Concat(from(x.Interface),
		[]expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, equals([]byte{family})},
		forOthers(), only, []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equals([]byte{proto}),
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}, equals(port),
			&expr.Immediate{Register: 1, Data: address}, &expr.Immediate{Register: 2, Data: port},
			&expr.TProxy{Family: family, TableFamily: unix.NFPROTO_INET, RegAddr: 1, RegPort: 2},
		}, marked(mark))
}
