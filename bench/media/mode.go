package main

import (
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"
)

// mode is one way through the gateway.
type mode struct {
	name string // in flags and results
	text string // for people
	// flood says that what is too much costs the gateway nothing: it is lost in the ring before it. Otherwise
	// the highest rate without loss must be searched.
	flood bool
	// ours says that edged does it.
	ours  bool
	start func(r *rig, streams int) (*gateway, error)
}

// The names of modes that the report looks for.
const (
	modeDrop, modeRoute, modeNFT, modeRTPEngine = "drop", "route", "nft", "rtpengine"
	modeUser, modeTC, modeXDP                   = "user", "tc", "xdp"
)

func modes() []mode {
	return []mode{
		{modeDrop, "XDP drop (the floor)", true, false, startDrop},
		{modeRoute, "plain routing", true, false, startRoute},
		{modeNFT, "nftables NAT", true, false, startNFT},
		{modeXDP, "edged, xdp", true, true, relayIn(modeXDP)},
		{modeTC, "edged, tc", true, true, relayIn(modeTC)},
		{modeUser, "edged, user space", false, true, relayIn(modeUser)},
		{modeRTPEngine, "rtpengine (user space)", false, false, startRTPEngine},
	}
}

// gateway is a way through the gateway that is open.
type gateway struct {
	// addr and ports are where the generator sends the streams; far, if any, are the ports at gwOutAddr that
	// must hear from the sink's side before the streams flow.
	addr       netip.Addr
	ports, far []uint16
	// pid is the relay's process, 0 if the kernel does it all.
	pid int
	// ready tells whether the streams that were heard are where they belong; nil if there is no question.
	ready func() (bool, string, error)
	// mallocs returns the number of allocations so far; nil if that cannot be known.
	mallocs func() (uint64, error)
	stop    func()
}

// peerPorts returns the ports of the peers of n streams.
func peerPorts(n int) []uint16 {
	ports := make([]uint16, n)
	for i := range ports {
		ports[i] = peerPort(i)
	}
	return ports
}

// startDrop has the gateway discard what it receives, before its network stack.
func startDrop(r *rig, streams int) (*gateway, error) {
	l, err := attach(r.gw, r.inDev, r.objs.Discard)
	if err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	return &gateway{addr: netip.MustParseAddr(sinkAddr), ports: peerPorts(streams), stop: func() { l.Close() }}, nil
}

// startRoute needs nothing: the namespaces are joined by routes anyway.
func startRoute(_ *rig, streams int) (*gateway, error) {
	return &gateway{addr: netip.MustParseAddr(sinkAddr), ports: peerPorts(streams), stop: func() {}}, nil
}

// natPort is the first of the ports that NAT gives to streams.
const natPort = 30001

// startNFT has the gateway translate both addresses and the port of each stream, as a relay does, and count.
func startNFT(r *rig, streams int) (*gateway, error) {
	ports := make([]uint16, streams)
	var to []string
	for i := range ports {
		ports[i] = natPort + uint16(i)
		to = append(to, fmt.Sprintf("%d : %s . %d", ports[i], sinkAddr, peerPort(i)))
	}
	rules := `table ip bench {
	map to { type inet_service : ipv4_addr . inet_service; elements = { ` + strings.Join(to, ", ") + ` } }
	chain in { type nat hook prerouting priority dstnat; ip daddr ` + gwInAddr + ` dnat ip to udp dport map @to; }
	chain out { type nat hook postrouting priority srcnat; oifname "` + r.outDev + `" snat ip to ` + gwOutAddr + `; }
}
`
	cmd := exec.Command("ip", "netns", "exec", r.gw, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("nft: %w: %s", err, out)
	}
	for _, s := range []string{"netfilter.nf_conntrack_acct=1", "netfilter.nf_conntrack_udp_timeout=600"} {
		if _, err := run("ip", "netns", "exec", r.gw, "sysctl", "-qw", "net."+s); err != nil {
			return nil, err
		}
	}
	return &gateway{addr: netip.MustParseAddr(gwInAddr), ports: ports, stop: func() {
		// The rig ends soon if the table stays; the next mode would be slower, and its figures say so.
		_, _ = run("ip", "netns", "exec", r.gw, "nft", "delete", "table", "ip", "bench")
	}}, nil
}

// command runs a program in the gateway, on its core and before ordinary programs.
func (r *rig) command(name string, args ...string) *exec.Cmd {
	all := []string{"netns", "exec", r.gw, "chrt", "-r", strconv.Itoa(prioRelay), "taskset", "-c", strconv.Itoa(gwCPU), name}
	return exec.Command("ip", slices.Concat(all, args)...)
}
