package h323

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/internal/tpkt"
	"edged.dev/edged/pkg/h323/h225"
	"edged.dev/edged/pkg/h323/h245"
	"edged.dev/edged/pkg/h323/q931"
	"edged.dev/edged/pkg/h323/ras"
)

// Messages in words, for people who look at a call afterwards. Nothing on the way of a call uses it.

// Protocol names what a message is.
type Protocol string

// The protocols of H.323. Those of TCP come as TPKTs.
const (
	H225 Protocol = "h225" // Q.931 with H.225.0 in it
	H245 Protocol = "h245" // on a connection of its own
	RAS  Protocol = "ras"
)

// Description is a message in words.
type Description struct {
	// Kind is its name, "SETUP" or "openLogicalChannel"; several of one TPKT are joined by ", ". Summary says more.
	Kind, Summary string
	// From and To are the parties, of a Setup.
	From, To string
	// Text is a line for each value, and Secret tells that it holds proofs of passwords or keys.
	Text   string
	Secret bool
}

const (
	// maxLines bounds a text, maxValue a value in it.
	maxLines, maxValue = 600, 160
	// maxPerTPKT bounds the H.245 messages of one TPKT that are named.
	maxPerTPKT = 32
)

// Describe describes a message. What is cut off or not understood is described as far as it goes.
func Describe(p Protocol, data []byte) Description {
	w := &words{}
	w.message(p, data)
	return w.done()
}

// Hide returns a message with zeros in the place of what proves a password, and of keys (H.235); lengths stay. data is not
// changed.
func Hide(p Protocol, data []byte) []byte {
	if !Describe(p, data).Secret {
		return data
	}
	out := bytes.Clone(data)
	w := &words{hide: true}
	w.message(p, out)
	return out
}

// message reads a message of the protocol.
func (w *words) message(p Protocol, data []byte) {
	switch p {
	case RAS:
		w.ras(data)
	case H245:
		w.control(payloadOf(data))
	default:
		w.signalling(payloadOf(data))
	}
}

// payloadOf returns the payload of the first TPKT, as far as it is there.
func payloadOf(data []byte) []byte {
	const header = 4
	if len(data) < header {
		return nil
	}
	return data[header:]
}

// words collects a description.
type words struct {
	d     Description
	kinds []string
	notes []string
	lines []string
	hide  bool
}

func (w *words) done() Description {
	w.d.Kind = strings.Join(w.kinds, ", ")
	if w.d.Kind == "" {
		w.d.Kind = "?"
	}
	w.d.Summary = strings.Join(append([]string{w.d.Kind}, w.notes...), " ")
	w.d.Text = strings.Join(w.lines, "\n")
	return w.d
}

func (w *words) note(format string, args ...any) {
	w.notes = append(w.notes, fmt.Sprintf(format, args...))
}

func (w *words) line(format string, args ...any) {
	if len(w.lines) < maxLines {
		w.lines = append(w.lines, fmt.Sprintf(format, args...))
	}
}

// typeName returns a Q.931 message type as the books write it.
func typeName(t q931.Type) string {
	name, ok := map[q931.Type]string{
		q931.Alerting: "ALERTING", q931.CallProceeding: "CALL PROCEEDING", q931.Progress: "PROGRESS", q931.Setup: "SETUP", q931.Connect: "CONNECT",
		q931.SetupAck: "SETUP ACKNOWLEDGE", q931.ConnectAck: "CONNECT ACKNOWLEDGE", q931.ReleaseComplete: "RELEASE COMPLETE", q931.Facility: "FACILITY",
		q931.Notify: "NOTIFY", q931.StatusInquiry: "STATUS INQUIRY", q931.Information: "INFORMATION", q931.Status: "STATUS",
	}[t]
	if !ok {
		return fmt.Sprintf("Q.931 %#x", byte(t))
	}
	return name
}

// signalling describes the payload of a TPKT of call signalling.
func (w *words) signalling(b []byte) {
	if len(b) == 0 {
		w.kinds = append(w.kinds, "keep-alive")
		return
	}
	m, err := h225.NewCodec().Decode(b)
	if err != nil {
		if len(b) > 4 { // the type is known all the same
			w.kinds = append(w.kinds, typeName(q931.Type(b[4])))
		}
		w.line("not understood: %v", err)
		return
	}
	w.kinds = append(w.kinds, typeName(m.Type))
	w.line("call reference: %d%s", m.CallRef, map[bool]string{true: ", by the called side"}[m.FromDest])
	if name, ok := m.Element(q931.Display); ok {
		w.line("display: %s", printed(string(name)))
	}
	if m.Type == q931.Setup {
		w.d.From, w.d.To = printed(callerName(m)), printed(strings.Join(slices.Compact(calledNames(m)), ", "))
		w.note("%s → %s", orNone(w.d.From), orNone(w.d.To))
	}
	if m.Tree == nil {
		return
	}
	if reason := m.Reason(); reason != "" {
		w.note("(%s)", reason)
	}
	w.carried(m)
	w.tree(m.Tree)
}

func orNone(s string) string {
	if s == "" {
		return "?"
	}
	return s
}

// carried notes the H.245 inside of call signalling, and where H.245 is to be connected to.
func (w *words) carried(m *h225.Message) {
	for _, a := range m.Addresses(nil) {
		if a.Field == h245.H245Address && a.Carrier == "" && a.AddrPort.Port() != 0 {
			w.note("H.245 at %v", a.AddrPort)
		}
	}
	if n := len(m.FastStart(nil)); n > 0 {
		w.note("fastStart of %d", n)
	}
	var list []string
	for _, r := range m.Parallel(m.Tunnelled(nil)) {
		list = append(list, controlWords(h245.At(m.Tree, r)))
	}
	if len(list) > 0 {
		w.note("with %s", strings.Join(list, ", "))
	}
}

// control describes the payload of a TPKT of H.245.
func (w *words) control(b []byte) {
	for d := h245.NewDecoder(); len(b) > 0; {
		m, rest, err := h245.Decode(d, b)
		if err != nil {
			w.line("not understood: %v", err)
			return
		}
		if len(w.kinds) < maxPerTPKT {
			w.kinds = append(w.kinds, string(m.Kind))
			if more := strings.TrimPrefix(controlWords(m), string(m.Kind)); more != "" {
				w.notes = append(w.notes, strings.TrimSpace(more))
			}
		}
		w.tree(m.Tree) // of all: there may be secrets
		b = rest
	}
}

// controlWords says in a line what an H.245 message does.
func controlWords(m h245.Message) string {
	text := string(m.Kind)
	ch, ok := m.Channel()
	if !ok {
		return text
	}
	text += fmt.Sprintf(" %d", ch.Number)
	for _, f := range []h245.Flow{ch.Forward, ch.Reverse} {
		if f.Codec != "" {
			text += " " + f.Codec
		}
		if f.MediaChannel.Valid() {
			text += " at " + f.MediaChannel.AddrPort.String()
		}
	}
	if ch.SeparateStack.Valid() {
		text += " T.120 at " + ch.SeparateStack.AddrPort.String()
	}
	return text
}

// ras describes a datagram.
func (w *words) ras(b []byte) {
	m, err := ras.NewCodec().Decode(b)
	if err != nil {
		w.line("not understood: %v", err)
		return
	}
	w.kinds = append(w.kinds, string(m.Kind))
	var names []string
	for _, a := range m.Aliases(nil) {
		if a.Text != "" && !slices.Contains(names, printed(a.Text)) {
			names = append(names, printed(a.Text))
		}
	}
	if len(names) > 0 {
		w.note("%s", strings.Join(names, ", "))
	}
	if reason := m.RejectReason(); reason != "" {
		w.note("(%s)", reason)
	}
	w.tree(m.Tree)
}

// tree writes a line for each value of a message.
func (w *words) tree(t *per.Tree) {
	for r := t.Root(); int(r) < t.Len(); r++ {
		if t.Inside(r) != per.None {
			continue // what is in it comes next
		}
		path := strings.TrimPrefix(t.Path(r), "h323-uu-pdu.h323-message-body.")
		secret := isSecret(path)
		value, leaf := valueOf(t, r)
		if !leaf {
			continue
		}
		if secret && value != "" {
			w.d.Secret = true
			w.blank(t, r)
			value = strings.Repeat("*", min(len(value), 16))
		}
		if value != "" {
			path += ": " + value
		}
		w.line("%s", path)
	}
}

// isSecret tells whether a value proves a password or is a key: the tokens and keys of H.235.
func isSecret(path string) bool {
	for _, name := range []string{"ryptoTokens", "tokens", "encryptionSync", "h235Key", "capabilityHash", "integrityCheckValue"} {
		if strings.Contains(path, name) {
			return true
		}
	}
	return false
}

// blank overwrites a value if that is asked for: all but what may be padding and length, which come first.
func (w *words) blank(t *per.Tree, r per.Ref) {
	const head = 3
	from, to := t.Span(r)
	switch k := t.Kind(r); {
	case !w.hide, k != per.Octets && k != per.Bits && k != per.Chars && k != per.General, to-from <= head+1:
		return
	}
	clear(t.Source()[from+head : to-1])
}

// valueOf returns what a leaf of the tree holds.
func valueOf(t *per.Tree, r per.Ref) (string, bool) {
	switch t.Kind(r) {
	case per.Null:
		return "", true
	case per.Bool, per.Int, per.Enum:
		return fmt.Sprint(t.Int(r)), true
	case per.Chars, per.General:
		return printed(t.Text(r)), true
	case per.Octets:
		b := t.Octets(r)
		if name := t.Name(r); name == "ip" || name == "network" {
			if a, ok := netip.AddrFromSlice(b); ok {
				return a.String(), true
			}
		}
		return hexOf(b), true
	case per.OID, per.Open:
		return hexOf(t.Octets(r)), true
	case per.Bits:
		from, to := t.Span(r)
		return hexOf(t.Source()[from:to]), true
	}
	return "", false
}

func hexOf(b []byte) string {
	if len(b) > maxValue/2 {
		return hex.EncodeToString(b[:maxValue/2]) + "…"
	}
	return hex.EncodeToString(b)
}

// printed drops what would disturb a terminal, and what is too long.
func printed(s string) string {
	clean := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s)
	if r := []rune(clean); len(r) > maxValue {
		return string(r[:maxValue]) + "…"
	}
	return clean
}

// whole returns a payload with the header of its TPKT; nil if it is too long for one.
func whole(second byte, payload []byte) []byte {
	b, err := tpkt.Append(make([]byte, 0, len(payload)+4), second, payload)
	if err != nil {
		return nil
	}
	return b
}
