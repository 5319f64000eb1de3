package main

import (
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"edged.dev/edged/bench/veth"
)

// mode is one way through the gateway.
type mode struct {
	name string // in flags and results
	text string // for people
	// flood says that what is too much costs the gateway nothing: it is lost in the ring before it. Otherwise
	// the highest rate without loss must be searched.
	flood bool
	// ours says that edged does it.
	ours bool
	// turn says that clients send by channels of TURN.
	turn  bool
	start func(r *rig, k caseKey) (*gateway, error)
}

// The names of modes that the report looks for.
const (
	modeDrop, modeRoute, modeNFT, modeRTPEngine = "drop", "route", "nft", "rtpengine"
	modeCoturn                                  = "coturn"
	modeUser, modeTC, modeXDP                   = "user", "tc", "xdp"
)

func modes() []mode {
	return []mode{
		{name: modeDrop, text: "XDP drop (the floor)", flood: true, start: startDrop},
		{name: modeRoute, text: "plain routing", flood: true, start: startRoute},
		{name: modeNFT, text: "nftables NAT", flood: true, start: startNFT},
		{name: modeXDP, text: "edged, xdp", flood: true, ours: true, start: relayIn(modeXDP)},
		{name: modeTC, text: "edged, tc", flood: true, ours: true, start: relayIn(modeTC)},
		{name: modeUser, text: "edged, user space", ours: true, start: relayIn(modeUser)},
		{name: modeRTPEngine, text: "rtpengine (user space)", start: startRTPEngine},
	}
}

// turnModes are those of TURN: what channels carry, both ways.
func turnModes() []mode {
	return []mode{
		{name: modeXDP, text: "edged TURN, xdp", flood: true, ours: true, turn: true, start: relayIn(modeXDP)},
		{name: modeTC, text: "edged TURN, tc", flood: true, ours: true, turn: true, start: relayIn(modeTC)},
		{name: modeUser, text: "edged TURN, user space", ours: true, turn: true, start: relayIn(modeUser)},
		{name: modeCoturn, text: "coturn", turn: true, start: startCoturn},
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
func startDrop(r *rig, k caseKey) (*gateway, error) {
	l, err := attach(r.gw, r.inDev, r.objs.Discard)
	if err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	return &gateway{addr: netip.MustParseAddr(sinkAddr), ports: peerPorts(k.streams), stop: func() { l.Close() }}, nil
}

// startRoute needs nothing: the namespaces are joined by routes anyway.
func startRoute(_ *rig, k caseKey) (*gateway, error) {
	return &gateway{addr: netip.MustParseAddr(sinkAddr), ports: peerPorts(k.streams), stop: func() {}}, nil
}

// natPort is the first of the ports that NAT gives to streams.
const natPort = 30001

// startNFT has the gateway translate both addresses and the port of each stream, as a relay does, and count.
func startNFT(r *rig, k caseKey) (*gateway, error) {
	ports := make([]uint16, k.streams)
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
		if _, err := veth.Run("ip", "netns", "exec", r.gw, "sysctl", "-qw", "net."+s); err != nil {
			return nil, err
		}
	}
	return &gateway{addr: netip.MustParseAddr(gwInAddr), ports: ports, stop: func() {
		// The rig ends soon if the table stays; the next mode would be slower, and its figures say so.
		_, _ = veth.Run("ip", "netns", "exec", r.gw, "nft", "delete", "table", "ip", "bench")
	}}, nil
}

// command runs a program in the gateway, on its core and before ordinary programs.
func (r *rig) command(name string, args ...string) *exec.Cmd {
	all := []string{"netns", "exec", r.gw, "chrt", "-r", strconv.Itoa(prioRelay), "taskset", "-c", strconv.Itoa(gwCPU), name}
	return exec.Command("ip", slices.Concat(all, args)...)
}
