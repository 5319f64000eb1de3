package main

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/media"
	"edged.dev/edged/pkg/media/fastpath"
)

// kernel looks at switches of the kernel that cost calls or time.
func (x *exam) kernel(context.Context) []finding {
	var out []finding
	warn := func(about, text, why, remedy string) {
		out = append(out, finding{Level: fastpath.Warn, About: about, Text: text, Why: why, Remedy: remedy})
	}
	const buffer = 1 << 20
	if n := x.number("net/core/rmem_max", buffer); n < buffer && len(x.cfg.SIP.Listen)+len(x.cfg.TURN.Listen) > 0 && !x.mayForce() {
		warn("buffers", fmt.Sprintf("net.core.rmem_max is %d", n), "bursts of calls overflow the sockets: messages are lost and sent again", "sysctl -w net.core.rmem_max=4194304 net.core.wmem_max=4194304")
	}
	if n := x.number("net/core/somaxconn", 4096); n < 512 {
		warn("backlog", fmt.Sprintf("net.core.somaxconn is %d", n), "when many clients connect at once, after a restart for example, some are refused", "sysctl -w net.core.somaxconn=4096")
	}
	if x.cfg.Media.Datapath != media.DatapathUser && x.sysctl("net/core/bpf_jit_enable") == "0" {
		warn("eBPF", "its compiler is off (net.core.bpf_jit_enable is 0)", "media in the kernel is interpreted, and slower than it need be", "sysctl -w net.core.bpf_jit_enable=1")
	}
	if low := x.number("net/ipv4/ip_unprivileged_port_start", 1024); !x.privileged() && slices.ContainsFunc(x.wanted(), func(w wantedPort) bool { return int(w.at.Port()) < low }) {
		warn("low ports", fmt.Sprintf("this user may not open ports below %d, which listeners want", low), "the daemon does not start as this user",
			"the systemd unit grants CAP_NET_BIND_SERVICE; for docker say --cap-add NET_BIND_SERVICE")
	}
	out = append(out, x.conntrack()...)
	if len(out) == 0 {
		out = append(out, fine("sysctl", "buffers, backlog and connection tracking suffice"))
	}
	return out
}

// hasCap tells whether this process has a capability.
func (x *exam) hasCap(bit int) bool {
	text, err := readFile(x.root, "proc/thread-self/status")
	if err != nil {
		return false
	}
	for line := range strings.Lines(text) {
		if hex, ok := strings.CutPrefix(line, "CapEff:"); ok {
			have, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
			return err == nil && have&(1<<bit) != 0
		}
	}
	return false
}

// mayForce tells whether the daemon may take larger buffers than the sysctl says: with CAP_NET_ADMIN, as the unit gives it.
func (x *exam) mayForce() bool { return x.hasCap(unix.CAP_NET_ADMIN) }

// privileged tells whether low ports may be opened.
func (x *exam) privileged() bool { return x.hasCap(unix.CAP_NET_BIND_SERVICE) }

// conntrack looks whether the table of connections has room.
func (x *exam) conntrack() []finding {
	count, most := x.number("net/netfilter/nf_conntrack_count", 0), x.number("net/netfilter/nf_conntrack_max", 0)
	if most == 0 || count*100 < most*75 {
		return nil
	}
	f := finding{
		Level: fastpath.Warn, About: "conntrack", Text: fmt.Sprintf("%d of %d connections are tracked", count, most), Why: "when the table is full, the kernel drops what is new: calls fail at random",
		Remedy: fmt.Sprintf("sysctl -w net.netfilter.nf_conntrack_max=%d", max(4*most, 262144)),
	}
	if count*100 >= most*95 {
		f.Level = fastpath.Fail
	}
	return []finding{f}
}

// limits compares the limit of open files with the sockets that the ports could need: two ports at each of two sides for a stream.
func (x *exam) limits(context.Context) []finding {
	who, have, err := x.openFiles()
	if err != nil {
		return []finding{{Level: fastpath.Warn, About: "descriptors", Text: err.Error(), Why: "the limit of open files is not known", Remedy: "run doctor as root"}}
	}
	need := uint64(2 * x.cfg.Pinholes.UDP.Size())
	text := fmt.Sprintf("%s may open %d, %d are needed if all media ports are used", who, have, need)
	if have >= need {
		return []finding{fine("descriptors", "%s", text)}
	}
	f := finding{
		Level: fastpath.Warn, About: "descriptors", Text: text, Why: fmt.Sprintf("new calls get 503 after some %d streams", have/4),
		Remedy: fmt.Sprintf("LimitNOFILE=%d in the systemd unit (ulimit -n %d, docker --ulimit nofile=%d), or a smaller pinholes.udp", roundUp(need), roundUp(need), roundUp(need)),
	}
	if have < 1024 || have*10 < need {
		f.Level = fastpath.Fail
	}
	return []finding{f}
}

// roundUp leaves room for all else: connections, files.
func roundUp(n uint64) uint64 { return (n + 4096 + 1023) / 1024 * 1024 }

// openFiles returns the limit of the running daemon, or that of this process, which a daemon started from here would have.
func (x *exam) openFiles() (who string, limit uint64, err error) {
	if x.daemon.runs() {
		text, err := readFile(x.root, path.Join("proc", strconv.Itoa(x.daemon.status.PID), "limits"))
		for line := range strings.Lines(text) {
			if rest, ok := strings.CutPrefix(line, "Max open files"); err == nil && ok {
				if c := strings.Fields(rest); len(c) > 1 {
					n, err := strconv.ParseUint(c[1], 10, 64)
					return "the daemon", n, err
				}
			}
		}
	}
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return "", 0, fmt.Errorf("limit of open files: %w", err)
	}
	return "this shell", l.Max, nil
}

// clock looks whether somebody keeps the clock right.
func (x *exam) clock(context.Context) []finding {
	var t unix.Timex
	state, err := unix.Adjtimex(&t) // modes is 0: nothing is set
	if err != nil {
		return []finding{{Level: fastpath.Warn, About: "clock", Text: err.Error(), Why: "whether the clock is right is not known", Remedy: "timedatectl"}}
	}
	return []finding{judgeClock(state, int(t.Status), x.now.Year())}
}

// oldestYear is before this program was written: a clock that says so has lost its battery.
const oldestYear = 2025

func judgeClock(state, status, year int) finding {
	const why = "certificates count as expired or not yet valid, nonces and time-limited TURN logins fail, call records lie"
	switch {
	case year < oldestYear:
		return finding{Level: fastpath.Fail, About: "clock", Text: fmt.Sprintf("it says %d", year), Why: why, Remedy: "timedatectl set-ntp true (systemd-timesyncd or chrony)"}
	case state == unix.TIME_ERROR || status&unix.STA_UNSYNC != 0:
		return finding{Level: fastpath.Warn, About: "clock", Text: "nobody keeps it right (the kernel says unsynchronised)", Why: why, Remedy: "timedatectl set-ntp true (systemd-timesyncd or chrony)"}
	}
	return fine("clock", "synchronised")
}
