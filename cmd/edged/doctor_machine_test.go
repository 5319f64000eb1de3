package main

import (
	"io/fs"
	"net/netip"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/firewall/survey"
	"edged.dev/edged/pkg/media/fastpath"
)

// machine is an examination of a machine that consists of files.
func machine(t *testing.T, config string, files map[string]string) *exam {
	t.Helper()
	cfg, err := parseConfig("edged.yaml", []byte(config))
	if err != nil {
		t.Fatal(err)
	}
	root := fstest.MapFS{}
	for name, text := range files {
		if target, ok := strings.CutPrefix(text, "→"); ok {
			root[name] = &fstest.MapFile{Data: []byte(target), Mode: fs.ModeSymlink}
			continue
		}
		root[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return &exam{cfg: cfg, root: root, survey: survey.Look(root), daemon: daemonView{err: fs.ErrNotExist}}
}

const twoNetworks = `networks: {inside: {addresses: [10.0.0.1]}, outside: {addresses: [198.51.100.1, "2001:db8::1"]}}
sip: {listen: ["udp://inside:5060", "udp://outside:5060", "tcp://outside:5060"]}
`

// bad returns the findings that are not fine, as one text.
func bad(list []finding) string {
	var out []string
	for _, f := range list {
		if f.Level != fastpath.OK {
			out = append(out, string(f.Level)+" "+f.About+": "+f.Text+" → "+f.Remedy)
		}
	}
	return strings.Join(out, "\n")
}

// TestPortsTaken: sockets of this address, of all addresses, of all of IPv6, and of others.
func TestPortsTaken(t *testing.T) {
	const head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
	line := func(at, state string) string {
		return "   0: " + at + " 00000000:0000 " + state + " 00000000:00000000 00:00000000 00000000     0        0 777 2 0 0\n"
	}
	for _, tt := range []struct{ name, file, line, want string }{
		{"own", "udp", line("0100000A:13C4", "07"), "udp 10.0.0.1:5060: taken by asterisk (pid 123)"},
		{"all", "udp", line("00000000:13C4", "07"), "udp 198.51.100.1:5060: taken by asterisk (pid 123)"},
		{"all of IPv6", "tcp6", line("00000000000000000000000000000000:13C4", "0A"), "tcp [2001:db8::1]:5060: taken by asterisk (pid 123)"},
		{"own of IPv6", "udp6", line("B80D0120000000000000000001000000:13C4", "07"), "udp [2001:db8::1]:5060: taken by asterisk (pid 123)"},
		{"another address", "udp", line("0200000A:13C4", "07"), ""},
		{"another port", "udp", line("0100000A:13C5", "07"), ""},
		{"a connection", "tcp", line("016433C6:13C4", "01"), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			x := machine(t, twoNetworks, map[string]string{
				"proc/thread-self/net/" + tt.file: head + tt.line, "proc/123/comm": "asterisk\n", "proc/123/fd/5": "→socket:[777]", "proc/123/fd/6": "→/dev/null",
			})
			if got := bad(x.ports(t.Context())); !strings.Contains(got, tt.want) || (got == "") != (tt.want == "") {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
	x := machine(t, twoNetworks, map[string]string{
		"proc/thread-self/net/udp": head + line("0100000A:13C4", "07"), "proc/123/comm": "a\x1b[2J\nok  forged\n", "proc/123/fd/5": "→socket:[777]",
	})
	var out strings.Builder
	if err := printFindings(&out, x.ports(t.Context()), false); err != nil || strings.ContainsAny(out.String(), "\x1b") || strings.Contains(out.String(), "\nok  forged") {
		t.Errorf("a process that has named itself: %v %q", err, out.String())
	}
	x = machine(t, twoNetworks, map[string]string{"proc/thread-self/net/udp": head + line("0100000A:13C4", "07")})
	if got := bad(x.ports(t.Context())); !strings.Contains(got, "a process that only root may see") {
		t.Errorf("without its owner: %q", got)
	}
}

func TestReservedPorts(t *testing.T) {
	for _, tt := range []struct {
		list        string
		first, last int
		want        bool
	}{
		{"", 50000, 59999, false}, {"50000-59999", 50000, 59999, true}, {"40000-54999,55000-60999", 50000, 59999, true},
		{"55000-60999,40000-54999", 50000, 59999, true}, {"50000-54998,55000-59999", 50000, 59999, false}, {"5060", 5060, 5060, true},
	} {
		if got := covers(tt.list, tt.first, tt.last); got != tt.want {
			t.Errorf("%q covers %d-%d: %t", tt.list, tt.first, tt.last, got)
		}
	}
}

// TestKernelFaults: switches and tables, good and bad.
func TestKernelFaults(t *testing.T) {
	good := map[string]string{
		"proc/sys/net/core/rmem_max": "4194304\n", "proc/sys/net/core/somaxconn": "4096\n", "proc/sys/net/core/bpf_jit_enable": "1\n",
		"proc/sys/net/ipv4/ip_unprivileged_port_start": "1024\n", "proc/sys/net/netfilter/nf_conntrack_count": "100\n",
		"proc/sys/net/netfilter/nf_conntrack_max": "65536\n", "proc/thread-self/status": "CapEff:\t0000000000000400\n",
	}
	for _, tt := range []struct{ config, file, text, want string }{
		{"", "", "", ""},
		{"", "proc/sys/net/core/rmem_max", "212992\n", "warn buffers: net.core.rmem_max is 212992"},
		{"", "proc/sys/net/core/somaxconn", "128\n", "warn backlog"},
		{"", "proc/sys/net/core/bpf_jit_enable", "0\n", "warn eBPF"},
		{"", "proc/sys/net/netfilter/nf_conntrack_count", "60000\n", "warn conntrack: 60000 of 65536"},
		{"", "proc/sys/net/netfilter/nf_conntrack_count", "65536\n", "fail conntrack"},
		{"forwards: [{name: web, listen: \"tcp://outside:80\", to: \"10.0.0.9:80\", allow: [198.51.100.0/24]}]\n", "proc/thread-self/status", "CapEff:\t0000000000000000\n", "warn low ports"},
	} {
		files := map[string]string{tt.file: tt.text}
		for name, text := range good {
			if name != tt.file {
				files[name] = text
			}
		}
		delete(files, "")
		got := bad(machine(t, twoNetworks+tt.config, files).kernel(t.Context()))
		if !strings.HasPrefix(got, tt.want) || (got == "") != (tt.want == "") || strings.Count(got, "\n") > 0 {
			t.Errorf("%s: %q, want %q", tt.file, got, tt.want)
		}
	}
}

// TestHelperFindings: modules that are loaded, and the switch that puts them to work.
func TestHelperFindings(t *testing.T) {
	x := machine(t, twoNetworks, map[string]string{"sys/module/nf_nat_h323/initstate": "live\n", "sys/module/nf_conntrack_sip/parameters/ports": ""})
	if got := bad(x.helpers(t.Context())); !strings.HasPrefix(got, "warn helpers: loaded: nf_nat_h323 → rmmod nf_nat_h323") {
		t.Errorf("a module: %q", got)
	}
	x = machine(t, twoNetworks, map[string]string{"proc/sys/net/netfilter/nf_conntrack_helper": "1\n", "sys/module/nf_conntrack_sip/parameters/ports": ""})
	if got := bad(x.helpers(t.Context())); !strings.Contains(got, `helper "sip"`) || !strings.Contains(got, "→ sysctl -w net.netfilter.nf_conntrack_helper=0") {
		t.Errorf("the switch: %q", got)
	}
	if got := bad(machine(t, twoNetworks, nil).helpers(t.Context())); got != "" {
		t.Errorf("none: %q", got)
	}
}

func TestJudgeClock(t *testing.T) {
	for _, tt := range []struct {
		state, status, year int
		want                fastpath.Level
	}{
		{unix.TIME_OK, 0, 2026, fastpath.OK}, {unix.TIME_ERROR, 0, 2026, fastpath.Warn},
		{unix.TIME_OK, unix.STA_UNSYNC, 2026, fastpath.Warn}, {unix.TIME_OK, 0, 1970, fastpath.Fail},
	} {
		if got := judgeClock(tt.state, tt.status, tt.year); got.Level != tt.want || (got.Level != fastpath.OK) != (got.Remedy != "") {
			t.Errorf("%+v: %+v", tt, got)
		}
	}
}

// TestTunnelMTU: interfaces that promise more than what carries them.
func TestTunnelMTU(t *testing.T) {
	x := &exam{net: netView{links: map[int]netlink.Link{7: &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 7, Name: "eth0", MTU: 1500}}}}}
	for _, tt := range []struct {
		link netlink.Link
		want string
	}{
		{&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: "ppp0", MTU: 1500}, LinkType: "ppp"}, "ip link set ppp0 mtu 1492"},
		{&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: "ppp0", MTU: 1492}, LinkType: "ppp"}, ""},
		{&netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: "wg0", MTU: 1500}}, "ip link set wg0 mtu 1420"},
		{&netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Name: "v", MTU: 9000, ParentIndex: 7}}, "ip link set v mtu 1500"},
		{&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "x", MTU: 1450, ParentIndex: 7}}, ""},
		{&netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "e", MTU: 9000}}, ""},
	} {
		if got := bad(x.tunnelMTU(tt.link)); !strings.HasSuffix(got, tt.want) || (got == "") != (tt.want == "") {
			t.Errorf("%s: %q, want %q", tt.link.Attrs().Name, got, tt.want)
		}
	}
}

// TestHostNames: what is looked up, and what is not: addresses, and the rest of the world.
func TestHostNames(t *testing.T) {
	x := machine(t, `networks: {inside: {addresses: [10.0.0.1]}, outside: {addresses: [198.51.100.1]}}
sip:
  listen: ["udp://inside:5060"]
  domains:
    example.org: {network: outside}
    "*": {network: outside, server: "tls:pbx.example.org:5071", backups: ["198.51.100.9:5060", "[2001:db8::9]"]}
    198.51.100.7: {network: outside}
ils: {listen: ["tcp://inside:389"], server: "ils.example.org:389"}
`, nil)
	var got []string
	for _, h := range x.cfg.hostNames() {
		got = append(got, h.query.Host)
	}
	if text := strings.Join(got, " "); text != "pbx.example.org example.org ils.example.org" {
		t.Error(text)
	}
}

// TestPacketsOfListeners: what doctor follows through the rules has the interface of the listener's address.
func TestPacketsOfListeners(t *testing.T) {
	x := machine(t, twoNetworks, nil)
	x.net = netView{links: map[int]netlink.Link{3: &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 3, Name: "wan"}}}, at: map[netip.Addr]int{netip.MustParseAddr("198.51.100.1"): 3}}
	n := 0
	for _, w := range x.reachable() {
		if p, ok := x.packetTo(w); ok {
			n++
			if p.In != "wan" || p.To.Addr() != netip.MustParseAddr("198.51.100.1") || p.Mark != 0 {
				t.Errorf("%+v", p)
			}
		}
	}
	if n != 4 { // two listeners, both ends of the media range
		t.Errorf("%d packets", n)
	}
}
