package proxydial

import (
	"context"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"time"

	"github.com/dop251/goja"
)

// environment is what PAC scripts may call besides the language: the functions of Netscape's specification, but
// timeRange and its kin take part of their forms only (see define).
type environment struct {
	ctx context.Context //nolint:containedctx // it lives as long as one evaluation
	vm  *goja.Runtime
}

// define puts the functions into the script's world, and takes out what PAC scripts do not need and what turns few
// bytes into many within one call that cannot be interrupted.
func (e environment) define() error {
	for name, fn := range map[string]any{
		"isPlainHostName": func(host string) bool { return !strings.Contains(host, ".") },
		"dnsDomainIs": func(host, domain string) bool {
			return strings.HasSuffix(strings.ToLower(host), strings.ToLower(domain))
		},
		"localHostOrDomainIs": localHostOrDomainIs,
		"dnsDomainLevels":     func(host string) int { return strings.Count(host, ".") },
		"shExpMatch":          shExpMatch,
		"isResolvable":        func(host string) bool { return lookup(e.ctx, host) != "" },
		"isInNet":             e.isInNet,
		"dnsResolve":          e.dnsResolve,
		"myIpAddress":         myIPAddress,
		"weekdayRange":        e.weekdayRange,
		"timeRange":           e.timeRange,
		"alert":               func(goja.FunctionCall) goja.Value { return goja.Undefined() },
	} {
		if err := e.vm.Set(name, fn); err != nil {
			return err
		}
	}
	_, err := e.vm.RunString(`(function () {
		var limit = 1048576;
		["repeat", "padStart", "padEnd", "replaceAll"].forEach(function (n) { delete String.prototype[n]; });
		["ArrayBuffer", "SharedArrayBuffer", "DataView", "Proxy", "Reflect", "Promise", "WebAssembly", "eval", "Function"].forEach(function (n) { delete globalThis[n]; });
		["Int8", "Uint8", "Uint8Clamped", "Int16", "Uint16", "Int32", "Uint32", "Float32", "Float64", "BigInt64", "BigUint64"].forEach(function (n) { delete globalThis[n + "Array"]; });
		["fill", "flat", "flatMap", "copyWithin"].forEach(function (n) { delete Array.prototype[n]; });
		var join = Array.prototype.join;
		var bounded = function (sep) {
			var size = 0, gap = sep === undefined ? 1 : String(sep).length;
			for (var i = 0; i < this.length; i++) {
				size += gap + (this[i] === undefined || this[i] === null ? 0 : String(this[i]).length);
				if (size > limit) { throw new RangeError("join: too long"); }
			}
			return join.call(this, sep);
		};
		Array.prototype.join = bounded;
		Array.prototype.toString = function () { return bounded.call(this); };
		var replace = String.prototype.replace;
		String.prototype.replace = function (what, by) {
			if (this.length > 65536 || typeof by === "string" && by.length > 256) { throw new RangeError("replace: too long"); }
			return replace.call(this, what, by);
		};
	})()`)
	return err
}

// localHostOrDomainIs is true for the name itself and for its first label alone.
func localHostOrDomainIs(host, fqdn string) bool {
	first, _, _ := strings.Cut(fqdn, ".")
	return strings.EqualFold(host, fqdn) || strings.EqualFold(host, first)
}

// shExpMatch matches by the shell's * and ?.
func shExpMatch(text, pattern string) bool {
	if len(pattern) > 1024 {
		return false
	}
	p := regexp.QuoteMeta(pattern)
	p = strings.NewReplacer(`\*`, ".*", `\?`, ".").Replace(p)
	re, err := regexp.Compile("(?is)^" + p + "$")
	return err == nil && re.MatchString(text)
}

func (e environment) dnsResolve(host string) goja.Value {
	if a := lookup(e.ctx, host); a != "" {
		return e.vm.ToValue(a)
	}
	return goja.Null()
}

// isInNet tells whether the host's address has the bits of pattern where mask has ones.
func (e environment) isInNet(host, pattern, mask string) bool {
	addr, err := netip.ParseAddr(host)
	if err != nil {
		if addr, err = netip.ParseAddr(lookup(e.ctx, host)); err != nil {
			return false
		}
	}
	p, err1 := netip.ParseAddr(pattern)
	m, err2 := netip.ParseAddr(mask)
	if err1 != nil || err2 != nil || !addr.Is4() || !p.Is4() || !m.Is4() {
		return false
	}
	a4, p4, m4 := addr.As4(), p.As4(), m.As4()
	for i := range a4 {
		if (a4[i]^p4[i])&m4[i] != 0 {
			return false
		}
	}
	return true
}

// myIPAddress returns the address that packets to the outside have. No packet is sent.
func myIPAddress() string {
	conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.MustParseAddrPort("192.0.2.1:9")))
	if err != nil {
		return "127.0.0.1"
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap().String()
}

// now returns the time, in UTC if the last argument says so, and the arguments before.
func now(args []goja.Value) (time.Time, []goja.Value) {
	if n := len(args); n > 0 && args[n-1].String() == "GMT" {
		return time.Now().UTC(), args[:n-1]
	}
	return time.Now(), args
}

// weekdayRange takes one or two of SUN to SAT, and GMT.
func (e environment) weekdayRange(call goja.FunctionCall) goja.Value {
	t, args := now(call.Arguments)
	days := []string{"SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"}
	at := func(v goja.Value) int {
		for i, d := range days {
			if d == v.String() {
				return i
			}
		}
		return -1
	}
	if len(args) == 0 || len(args) > 2 {
		return e.vm.ToValue(false)
	}
	from, to, day := at(args[0]), at(args[len(args)-1]), int(t.Weekday())
	if from < 0 || to < 0 {
		return e.vm.ToValue(false)
	}
	return e.vm.ToValue(inRange(day, from, to))
}

// timeRange takes an hour, two hours, or hour and minute twice, and GMT.
func (e environment) timeRange(call goja.FunctionCall) goja.Value {
	t, args := now(call.Arguments)
	n := make([]int, len(args))
	for i, a := range args {
		n[i] = int(a.ToInteger())
	}
	minute := t.Hour()*60 + t.Minute()
	switch len(n) {
	case 1:
		return e.vm.ToValue(t.Hour() == n[0])
	case 2:
		return e.vm.ToValue(inRange(minute, n[0]*60, n[1]*60))
	case 4:
		return e.vm.ToValue(inRange(minute, n[0]*60+n[1], n[2]*60+n[3]))
	}
	return e.vm.ToValue(false)
}

// inRange tells whether v lies in from to to, both included, which may go over the end.
func inRange(v, from, to int) bool {
	if from <= to {
		return v >= from && v <= to
	}
	return v >= from || v <= to
}
