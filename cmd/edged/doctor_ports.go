package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"edged.dev/edged/pkg/media/fastpath"
)

// readFile returns a file of the machine as text.
func readFile(root fs.FS, name string) (string, error) {
	b, err := fs.ReadFile(root, name)
	return string(b), err
}

// socketAt is a port at an address; an unspecified address is all.
type socketAt struct {
	proto string
	at    netip.AddrPort
}

// openSocket is one that waits for others: a TCP listener or an unconnected UDP socket.
type openSocket struct {
	socketAt
	inode string
}

// sockets lists those of this network namespace.
func (x *exam) sockets() ([]openSocket, error) {
	var out []openSocket
	for _, f := range []struct{ file, proto, state string }{
		{"tcp", "tcp", "0A"}, {"tcp6", "tcp", "0A"}, {"udp", "udp", "07"}, {"udp6", "udp", "07"},
	} {
		text, err := readFile(x.root, "proc/thread-self/net/"+f.file)
		if errors.Is(err, fs.ErrNotExist) { // without IPv6
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("sockets: %w", err)
		}
		for line := range strings.Lines(text) {
			if c := strings.Fields(line); len(c) > 9 && c[3] == f.state {
				if at, ok := socketAddress(c[1]); ok {
					out = append(out, openSocket{socketAt{f.proto, at}, c[9]})
				}
			}
		}
	}
	return out, nil
}

// socketAddress reads ADDRESS:PORT as /proc/net writes it: words of four octets in the order of this machine, which is
// taken to be little-endian, as all that edged is built for are.
func socketAddress(text string) (netip.AddrPort, bool) {
	host, port, ok := strings.Cut(text, ":")
	b, err := hex.DecodeString(host)
	n, err2 := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil || err2 != nil || len(b)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(b); i += 4 {
		slices.Reverse(b[i : i+4])
	}
	a, ok := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(a.Unmap(), uint16(n)), ok
}

// bars tells whether the socket keeps others from the port. One of all IPv6 addresses has those of IPv4, too, unless it was told not to.
func (s openSocket) bars(want socketAt) bool {
	if s.proto != want.proto || s.at.Port() != want.at.Port() {
		return false
	}
	a, b := s.at.Addr(), want.at.Addr()
	return a == b || b.IsUnspecified() && a.Is4() == b.Is4() || a.IsUnspecified() && (a.Is6() || b.Is4())
}

// ownerOf returns the process that has a socket. All are looked at once, and only if there is a socket to ask for.
func (x *exam) ownerOf(s openSocket) owner {
	x.who.Do(func() { x.owners = x.findOwners() })
	return x.owners[s.inode]
}

// findOwners maps the inodes of sockets to processes.
func (x *exam) findOwners() map[string]owner {
	out := map[string]owner{}
	entries, err := fs.ReadDir(x.root, "proc")
	if err != nil {
		return out
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		fds, err := fs.ReadDir(x.root, path.Join("proc", e.Name(), "fd"))
		if err != nil || len(fds) == 0 {
			continue
		}
		comm, _ := readFile(x.root, path.Join("proc", e.Name(), "comm"))
		for _, fd := range fds {
			target, err := fs.ReadLink(x.root, path.Join("proc", e.Name(), "fd", fd.Name()))
			if inode, ok := strings.CutPrefix(target, "socket:["); err == nil && ok {
				out[strings.TrimSuffix(inode, "]")] = owner{pid, strings.TrimSpace(comm)}
			}
		}
	}
	return out
}

type owner struct {
	pid  int
	comm string
}

func (o owner) String() string {
	if o.pid == 0 {
		return "a process that only root may see"
	}
	return fmt.Sprintf("%s (pid %d)", printable(o.comm), o.pid) // any user may name his processes as he likes
}

// holder names who has a port, "" if nobody.
func (x *exam) holder(want socketAt) string {
	list, err := x.sockets()
	if err != nil {
		return ""
	}
	if i := slices.IndexFunc(list, func(s openSocket) bool { return s.bars(want) }); i >= 0 {
		return x.ownerOf(list[i]).String()
	}
	return ""
}

// ours tells whether a socket is the running daemon's or this process's. Where the owner cannot be seen, it is taken for the daemon's.
func (x *exam) ours(o owner) bool {
	return o.pid == os.Getpid() || x.daemon.runs() && (o.pid == x.daemon.status.PID || o.pid == 0) || o.pid == 1 && o.comm == "systemd"
}

// ports looks who has the ports of the listeners.
func (x *exam) ports(context.Context) []finding {
	list, err := x.sockets()
	if err != nil {
		return []finding{{Level: fastpath.Warn, About: "ports", Text: err.Error(), Why: "ports that are taken are not seen", Remedy: "run doctor where /proc is mounted"}}
	}
	var out []finding
	free, held := 0, 0
	for _, want := range x.wanted() {
		i := slices.IndexFunc(list, func(s openSocket) bool { return s.bars(want.socketAt) })
		switch {
		case i < 0:
			free++
			if f, missing := x.notListening(want); missing {
				out = append(out, f)
			}
		case x.ours(x.ownerOf(list[i])):
			held++
		default:
			who := x.ownerOf(list[i])
			out = append(out, finding{
				Level: fastpath.Fail, About: "port " + want.String(), Text: "taken by " + who.String(), Why: "the daemon does not start: the address is in use",
				Remedy: fmt.Sprintf("stop it (%s), or give %s another port", stopCommand(who), want.key),
			})
		}
	}
	if len(out) == 0 {
		out = append(out, fine("ports", "%d of the listeners are free, %d are held by the daemon", free, held))
	}
	return out
}

func stopCommand(o owner) string {
	if o.pid == 0 {
		return "sudo edged doctor names it"
	}
	return fmt.Sprintf("systemctl status %d names its unit", o.pid)
}

// wantedPort is a listener at one address.
type wantedPort struct {
	socketAt
	network, key string
}

func (w wantedPort) String() string { return w.proto + " " + w.at.String() }

// wanted lists the listeners at every address of their networks that exists, each port once.
func (x *exam) wanted() []wantedPort {
	var out []wantedPort
	for _, p := range x.cfg.listeners() {
		if strings.HasPrefix(p.Key, "h323.discovery") { // a socket of a group of multicast
			continue
		}
		for _, a := range x.cfg.Networks[p.Network].Addresses {
			w := wantedPort{socketAt{p.Proto, netip.AddrPortFrom(a, p.Port)}, p.Network, p.Key}
			if !slices.ContainsFunc(out, func(o wantedPort) bool { return o.socketAt == w.socketAt }) {
				out = append(out, w)
			}
		}
	}
	if at, err := netip.ParseAddrPort(x.cfg.Admin.Listen); err == nil && !x.daemon.runs() {
		out = append(out, wantedPort{socketAt{"tcp", at}, "", "admin.listen"})
	}
	return out
}

// notListening is a listener of the file that a running daemon does not have.
func (x *exam) notListening(w wantedPort) (finding, bool) {
	if !x.daemon.runs() {
		return finding{}, false
	}
	return finding{
		Level: fastpath.Warn, About: "port " + w.String(), Text: "the daemon runs, but nobody listens there", Why: "callers are refused",
		Remedy: w.key + " takes a restart: systemctl restart edged; or the daemon runs with another file",
	}, true
}

// span is a range of ports of the configuration.
type span struct {
	key, proto  string
	first, last int
}

func (s span) String() string { return fmt.Sprintf("%d-%d", s.first, s.last) }

// spans are the ranges from which ports are taken while calls live.
func (c *config) spans() []span {
	out := []span{{"pinholes.udp", "udp", int(c.Pinholes.UDP.First), int(c.Pinholes.UDP.Last)}}
	if len(c.T120.Listen)+len(c.H323.Listen)+len(c.SIP.Listen) > 0 {
		out = append(out, span{"pinholes.tcp", "tcp", int(c.Pinholes.TCP.First), int(c.Pinholes.TCP.Last)})
	}
	if r := c.TURN.Ports; r.First > 0 && len(c.TURN.Listen) > 0 {
		out = append(out, span{"turn.ports", "udp", int(r.First), int(r.Last)})
	}
	return out
}

// portRanges looks whether others may have the ports of calls: the kernel, which gives them to whoever asks for any port, and
// programs that have them already.
func (x *exam) portRanges(context.Context) []finding {
	if len(x.cfg.Networks) == 0 {
		return nil
	}
	var out []finding
	var clash []string
	local := strings.Fields(x.sysctl("net/ipv4/ip_local_port_range"))
	reserved := x.sysctl("net/ipv4/ip_local_reserved_ports")
	for _, s := range x.cfg.spans() {
		if len(local) == 2 && overlaps(s, local[0], local[1]) && !covers(reserved, max(s.first, atoi(local[0])), min(s.last, atoi(local[1]))) {
			clash = append(clash, s.key+" ("+s.String()+")")
		}
		out = append(out, x.squatters(s)...)
	}
	if len(clash) > 0 {
		var ranges []string
		for _, s := range x.cfg.spans() {
			ranges = append(ranges, s.String())
		}
		if reserved != "" {
			ranges = append(ranges, reserved)
		}
		slices.Sort(ranges)
		out = append(out, finding{
			Level: fastpath.Warn, About: "port ranges", Text: fmt.Sprintf("the kernel gives ports of %s to any program (ip_local_port_range %s-%s)", strings.Join(clash, " and "), local[0], local[1]),
			Why:    "a port that a program happens to have is missing to calls, and two ports of a pair with it",
			Remedy: "sysctl -w net.ipv4.ip_local_reserved_ports=" + strings.Join(slices.Compact(ranges), ",") + " (and the same in /etc/sysctl.d/edged.conf)",
		})
	}
	if len(out) == 0 {
		out = append(out, fine("port ranges", "nobody else gets the ports of calls"))
	}
	return out
}

func atoi(s string) int {
	n, _ := strconv.Atoi(s)
	return n
}

func overlaps(s span, first, last string) bool { return s.first <= atoi(last) && atoi(first) <= s.last }

// covers tells whether a list such as 40000-49999,50000-59999 holds all of a range.
func covers(list string, first, last int) bool {
	for first <= last {
		next := first
		for _, part := range strings.Split(list, ",") {
			a, b, ok := strings.Cut(strings.TrimSpace(part), "-")
			if !ok {
				b = a
			}
			if part != "" && atoi(a) <= next && next <= atoi(b) {
				next = atoi(b) + 1
			}
		}
		if next == first {
			return false
		}
		first = next
	}
	return true
}

// squatters names the programs that have ports of a range at addresses of the edge.
func (x *exam) squatters(r span) []finding {
	list, err := x.sockets()
	if err != nil {
		return nil // said already
	}
	var who []string
	n := 0
	for _, s := range list {
		port := int(s.at.Port())
		if s.proto != r.proto || port < r.first || port > r.last || !x.edgeHas(s.at.Addr()) || x.ours(x.ownerOf(s)) {
			continue
		}
		n++
		if text := fmt.Sprintf("%d by %s", port, x.ownerOf(s)); len(who) < 3 {
			who = append(who, text)
		}
	}
	if n == 0 {
		return nil
	}
	return []finding{{
		Level: fastpath.Warn, About: "port ranges", Text: fmt.Sprintf("%d ports of %s (%s) are taken: %s", n, r.key, r, strings.Join(who, ", ")),
		Why: "they are missing to calls; what is sent there for a call of before goes to a stranger", Remedy: fmt.Sprintf("give those programs other ports, or change %s", r.key),
	}}
}

// edgeHas tells whether an address is the edge's, or all.
func (x *exam) edgeHas(a netip.Addr) bool {
	if a.IsUnspecified() {
		return true
	}
	for _, n := range x.cfg.Networks {
		if slices.Contains(n.Addresses, a) {
			return true
		}
	}
	return false
}
