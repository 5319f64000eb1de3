// Package syslog sends records to a syslog receiver in the form of RFC 5424: over a unix socket, UDP (RFC 5426), TCP with
// octet counting (RFC 6587 §3.4.1) or TLS (RFC 5425). It is not a logger, and keeps nothing on disk: what a receiver that is
// away or slow does not take is dropped, and counted.
//
//	Add ─► queue (bounded) ─► Serve ─► socket, connected again after a pause when it fails
//
//	<PRI>1 TIME HOST APP PROCID MSGID [ID name="value" ...] BODY
package syslog

import (
	"fmt"
	"net/netip"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Message is one record. Fields that are empty are written as "-".
type Message struct {
	// Facility is 0-23 and Severity 0-7 (RFC 5424 §6.2.1).
	Facility, Severity int
	Time               time.Time
	Host, App          string
	PID                int
	// Kind is the MSGID.
	Kind string
	// Element is the name of the one structured data element, "" for none; Params are its parameters.
	Element string
	Params  []Param
	// Body is UTF-8.
	Body string
}

// Param is a parameter of structured data.
type Param struct{ Name, Value string }

// The severities and facilities that records are sent with.
const (
	Info = 6
)

// maxValue bounds the value of a parameter, so that no structured data is cut, in octets before it is escaped.
const maxValue = 1024

// maxMessage bounds a message, so that it fits a datagram; receivers take 2,048 octets at least (RFC 5424 §6.1).
const maxMessage = 60_000

// Append appends a message (RFC 5424 §6).
func Append(b []byte, m Message) []byte {
	start := len(b)
	b = fmt.Appendf(b, "<%d>1 %s ", m.Facility*8+m.Severity, m.Time.UTC().Format("2006-01-02T15:04:05.000000Z"))
	b = append(b, word(m.Host, 255)+" "+word(m.App, 48)+" "+strconv.Itoa(m.PID)+" "+word(m.Kind, 32)+" "...)
	if m.Element == "" {
		b = append(b, '-')
	} else {
		b = append(append(b, '['), word(m.Element, 64)...)
		for _, p := range m.Params {
			b = append(append(append(b, ' '), word(p.Name, 32)...), `="`...)
			b = append(append(b, escape(p.Value)...), '"')
		}
		b = append(b, ']')
	}
	if m.Body != "" {
		b = append(append(b, ' '), printable(m.Body)...)
	}
	if len(b)-start > maxMessage {
		b = b[:start+maxMessage]
		for len(b) > start && !utf8.RuneStart(b[len(b)-1]) { // no half a character
			b = b[:len(b)-1]
		}
		b = b[:len(b)-1]
	}
	return b
}

// word makes s a field of the header or a name: printable ASCII without what delimits.
func word(s string, most int) string {
	clean := strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' || r == '=' || r == ']' || r == '"' {
			return '_'
		}
		return r
	}, s)
	if clean == "" {
		return "-"
	}
	return clean[:min(len(clean), most)]
}

// escape makes s a parameter's value (RFC 5424 §6.3.3).
func escape(s string) string {
	return strings.NewReplacer(`\`, `\\`, `"`, `\"`, `]`, `\]`).Replace(printable(s[:min(len(s), maxValue)]))
}

// printable makes one line of s: values are a stranger's words, and receivers write lines to files, which people print.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == utf8.RuneError || r == '\u2028' || r == '\u2029' {
			return '?'
		}
		return r
	}, s)
}

// Target is where a receiver listens; the zero value is none.
type Target struct {
	// Network is unix, udp, tcp or tls.
	Network string
	// Address is HOST:PORT, or the path of a unix socket.
	Address string
}

// The ports of a receiver that names none (RFC 5426, RFC 5425; TCP has none of its own).
var defaultPorts = map[string]string{"udp": "514", "tcp": "601", "tls": "6514"} //nolint:gochecknoglobals // a table

// UnmarshalText reads unix:///PATH, or udp://, tcp:// or tls://HOST[:PORT].
func (t *Target) UnmarshalText(b []byte) error {
	*t = Target{}
	if len(b) == 0 {
		return nil
	}
	u, err := url.Parse(string(b))
	if err != nil {
		return fmt.Errorf("%q is no URL", b)
	}
	port, known := defaultPorts[u.Scheme]
	switch {
	case u.Scheme == "unix" && u.Host == "" && path.IsAbs(u.Path):
		*t = Target{"unix", u.Path}
		return nil
	case !known || u.Hostname() == "" || u.Path != "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return fmt.Errorf("%q is not unix:///PATH, udp://, tcp:// or tls://HOST[:PORT]", b)
	}
	if p := u.Port(); p != "" {
		if n, err := strconv.ParseUint(p, 10, 16); err != nil || n == 0 {
			return fmt.Errorf("%q has no port", b)
		}
		port = p
	}
	host := u.Hostname()
	if a, err := netip.ParseAddr(host); err == nil && a.Is6() {
		host = "[" + host + "]"
	}
	*t = Target{u.Scheme, host + ":" + port}
	return nil
}

// MarshalText is the reverse of UnmarshalText.
func (t Target) MarshalText() ([]byte, error) {
	if t.Network == "" {
		return nil, nil
	}
	return []byte(t.Network + "://" + t.Address), nil
}

// IsZero tells whether there is none.
func (t Target) IsZero() bool { return t.Network == "" }
