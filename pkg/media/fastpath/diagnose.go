package fastpath

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Level says how bad a finding is.
type Level string

// The levels: all is well; it works, but not as well as it could; what was asked for does not work.
const (
	OK   Level = "ok"
	Warn Level = "warn"
	Fail Level = "fail"
)

// Finding is one thing that was looked at. Remedy is "" where there is nothing to do.
type Finding struct {
	Level  Level  `json:"level"`
	About  string `json:"about"`
	Text   string `json:"text"`
	Remedy string `json:"remedy,omitempty"`
}

// Diagnose looks at what the kernel path needs, for this process, and changes nothing. What bars the path is
// a Fail if wanted, else a Warn, as user space then carries all media.
func Diagnose(c Config, wanted bool) []Finding {
	bar := Warn
	if wanted {
		bar = Fail
	}
	list := []Finding{diagnoseKernel(bar)}
	able, missing := capabilities()
	list = append(list, missing.findings(bar)...)
	if able {
		list = append(list, diagnoseProgram(bar))
	}
	list = append(list, diagnosePin(c.Pin))
	return append(list, diagnoseDevices(c, bar)...)
}

func diagnoseKernel(bar Level) Finding {
	f := Finding{Level: OK, About: "kernel"}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Finding{bar, f.About, err.Error(), ""}
	}
	release := unix.ByteSliceToString(u.Release[:])
	switch major, minor := version(release); {
	case major < 5 || major == 5 && minor < 11:
		return Finding{bar, f.About, release + " is too old", "use Linux 5.11 or later"}
	case major < 6 || major == 6 && minor < 6:
		f.Text = release + ": programs are attached by clsact"
	default:
		f.Text = release + ": programs are attached by tcx"
	}
	return f
}

// version reads the first two numbers of a release such as 6.1.0-13-amd64; what is no number is 0.
func version(release string) (major, minor int) {
	for i, part := range strings.SplitN(release, ".", 3) {
		if end := strings.IndexFunc(part, func(r rune) bool { return r < '0' || r > '9' }); end >= 0 {
			part = part[:end]
		}
		n, _ := strconv.Atoi(part)
		switch i {
		case 0:
			major = n
		case 1:
			minor = n
		}
	}
	return major, minor
}

// caps are the names of capabilities.
type caps []string

func (missing caps) findings(bar Level) []Finding {
	if len(missing) == 0 {
		return []Finding{{OK, "privileges", "this process has CAP_NET_ADMIN and CAP_BPF", ""}}
	}
	return []Finding{{
		bar, "privileges", "this process lacks " + strings.Join(missing, " and "),
		"the systemd unit grants the daemon both; for docker say --cap-add NET_ADMIN --cap-add BPF; run doctor as root to see more",
	}}
}

// capabilities tells whether the process may load and attach programs, and what it lacks.
func capabilities() (able bool, missing caps) {
	var have uint64
	text, err := os.ReadFile("/proc/thread-self/status")
	for line := range strings.Lines(string(text)) {
		if hex, ok := strings.CutPrefix(line, "CapEff:"); ok {
			have, err = strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
		}
	}
	for _, c := range []struct {
		name string
		bits []int
	}{
		{"CAP_NET_ADMIN", []int{unix.CAP_NET_ADMIN}},
		{"CAP_BPF", []int{unix.CAP_BPF, unix.CAP_SYS_ADMIN}},
	} {
		if err != nil || !slices.ContainsFunc(c.bits, func(bit int) bool { return have&(1<<bit) != 0 }) {
			missing = append(missing, c.name)
		}
	}
	return len(missing) == 0, missing
}

// diagnoseProgram loads the program and forgets it.
func diagnoseProgram(bar Level) Finding {
	k, err := load()
	if err == nil {
		err = k.close()
	}
	switch {
	case errors.Is(err, unix.EPERM):
		return Finding{bar, "program", err.Error(), "the seccomp profile of a container may forbid bpf(2)"}
	case err != nil:
		return Finding{bar, "program", err.Error(), "this kernel refuses it: use another one, and report it"}
	}
	return Finding{OK, "program", "the kernel accepts it", ""}
}

func diagnosePin(p Pin) Finding {
	f := Finding{Level: OK, About: "pinning", Text: p.Folder}
	switch err := writable(p.Folder); {
	case p.Folder == "":
		f = Finding{Warn, f.About, "media.pin is empty: media ends with the daemon", "name a folder on a bpffs"}
	case errors.Is(err, unix.EACCES) || errors.Is(err, unix.EROFS):
		f = Finding{Warn, f.About, fmt.Sprintf("%s: %v, for this user", p.Folder, err), "the systemd unit gives the daemon a folder of its own there; run doctor as root to see more"}
	case err != nil:
		f = Finding{Warn, f.About, err.Error(), "without it media ends with the daemon"}
	}
	return f
}

// writable tells whether the folder can be used, or made where it does not exist yet.
func writable(folder string) error {
	if folder == "" {
		return nil
	}
	if err := onBPF(folder); err != nil {
		return err
	}
	return unix.Access(existing(folder), unix.W_OK|unix.X_OK)
}

// diagnoseDevices looks at the device of each of the networks' addresses.
func diagnoseDevices(c Config, bar Level) (list []Finding) {
	policies, err := netlink.XfrmPolicyList(unix.AF_UNSPEC)
	if err == nil && len(policies) > 0 {
		list = append(list, Finding{bar, "IPsec", "policies are in force: user space carries all media", ""})
	}
	seen := make(map[int]bool)
	for name, n := range c.Networks {
		for _, a := range n.Addresses {
			found, err := devicesOf([]netip.Addr{a}, false)
			if err != nil {
				list = append(list, Finding{
					bar, "network " + name, err.Error() + ": user space carries what comes there",
					"give the address to an Ethernet device, or correct networks." + name + ".addresses",
				})
			}
			for index := range found {
				if !seen[index] {
					list = append(list, diagnoseDevice(name, index))
				}
				seen[index] = true
			}
		}
	}
	slices.SortFunc(list, func(a, b Finding) int { return strings.Compare(a.About, b.About) })
	return list
}

func diagnoseDevice(network string, index int) Finding {
	f := Finding{Level: OK, About: "network " + network}
	l, err := netlink.LinkByIndex(index)
	if err != nil {
		return Finding{Warn, f.About, err.Error(), ""}
	}
	at := l.Attrs()
	f.Text = fmt.Sprintf("device %s: %s, MTU %d, %s", at.Name, l.Type(), at.MTU, xdpHint(l))
	if at.Flags&unix.IFF_UP == 0 {
		f.Level, f.Text, f.Remedy = Warn, f.Text+", down", "ip link set "+at.Name+" up"
	} else if at.MTU < 1280 {
		f.Level, f.Text = Warn, f.Text+": larger packets go through user space"
	}
	return f
}

// xdpHint says what the driver can do by XDP, as the device is set up now.
func xdpHint(l netlink.Link) string {
	can, err := xdpAbilities(l.Attrs().Index)
	if err != nil {
		return "XDP not known"
	}
	if others, err := netlink.LinkList(); err == nil {
		if err := refusesXDP(l, can, others); err != nil {
			return "no XDP: " + err.Error()
		}
	}
	if can&xdpTransmit == 0 {
		return "XDP, but for what leaves by it"
	}
	return "XDP"
}
