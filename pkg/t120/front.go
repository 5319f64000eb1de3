package t120

import (
	"errors"
	"net/netip"
	"slices"

	"edged.dev/edged/internal/tpkt"
	"edged.dev/edged/pkg/t120/gcc"
	"edged.dev/edged/pkg/t120/mcs"
	"edged.dev/edged/pkg/t120/x224"
)

// Why a connection is refused. The text is the reason that is counted.
var (
	errTPKT      = errors.New("tpkt")      // the stream is no sequence of TPKTs
	errX224      = errors.New("x224")      // a TPKT holds no TPDU of class 0
	errSequence  = errors.New("sequence")  // a message that has no place here
	errMCS       = errors.New("mcs")       // the first data is no connect PDU of T.125
	errGCC       = errors.New("gcc")       // the connect PDU holds no T.124
	errSize      = errors.New("size")      // a connect PDU is longer than maxConnect
	errPolicy    = errors.New("policy")    // a rule refuses the conference or the caller
	errRDP       = errors.New("rdp")       // a terminal session, and those are not wanted
	errRoute     = errors.New("route")     // nobody is known to answer
	errAmbiguous = errors.New("ambiguous") // an addition to one of several conferences of the same id
	errLoop      = errors.New("loop")      // the target is the edge itself
	errSlow      = errors.New("timeout")   // the connection was not up in time
	errConfirm   = errors.New("confirm")   // the target did not confirm what the edge had confirmed
)

// maxConnect bounds a connect PDU put together from several DTs, in octets.
const maxConnect = 64 << 10

// Call is what is known of a connection when its target is sought. Everything but the addresses and the network
// is what the caller says.
type Call struct {
	// Network is that of the listener; Client is the caller, Local the address that he called.
	Network       string
	Client, Local netip.AddrPort
	// Called is the called transport or domain selector, if it is text.
	Called string
	// Conference and Caller are T.124's. They are empty as long as the caller waits for the connection.
	Conference, Caller string
	// Cookie is RDP's.
	Cookie string
}

// stage is how far a connection has come.
type stage uint8

const (
	wantRequest stage = iota // CR
	wantConfirm              // CC
	wantConnect              // Connect-Initial or Connect-Additional
	wantAnswer               // Connect-Response or Connect-Result
	open                     // data
	opaque                   // nothing more is to be read: TLS, RDP, or nobody cares
)

// front checks the messages of one connection in the order of the layers: X.224, T.125, T.124; and edits
// addresses in what follows. It does no I/O and has no lock.
type front struct {
	cfg     *Config
	decide  func(*Call, bool) error              // may the conference be? The second says that it is a terminal session
	hide    func(from int) (gcc.Translate, bool) // how addresses that a side says become the other's
	call    Call
	stage   stage
	caller  int // the side that sent CR
	request []byte
	tpdu    x224.TPDU
	connect mcs.Connect
	info    gcc.Info
	nodes   []uint16
	editor  *gcc.Editor
	held    []byte   // TPKTs of a unit that is not whole yet
	unit    []byte   // its data
	parts   [2]parts // what has come of units and PDUs that are not whole yet
	change  gcc.Change
	id      uint32 // of the conference's first connection, after its answer
	joined  bool   // the conference is up
}

func newFront(cfg *Config, call Call, decide func(*Call, bool) error, hide func(int) (gcc.Translate, bool)) *front {
	return &front{cfg: cfg, call: call, decide: decide, hide: hide}
}

// receive takes a TPKT from a side (0 or 1) and returns what the other side is to get, nothing if more must come
// before. An error ends the connection.
func (f *front) receive(from int, p tpkt.Packet) ([]byte, error) {
	if len(p.Payload) == 0 { // keep-alive
		return tpkt.Append(nil, p.Second, nil)
	}
	t, err := x224.Parse(p.Payload)
	if err != nil {
		return nil, errors.Join(errX224, err)
	}
	switch {
	case t.Kind == x224.DisconnectRequest, t.Kind == x224.Error:
		if f.stage == wantRequest {
			return nil, errSequence
		}
	case t.Kind == x224.ConnectionRequest:
		if f.stage != wantRequest {
			return nil, errSequence
		}
		f.stage, f.caller, f.tpdu, f.request = wantConfirm, from, t, slices.Clone(p.Payload)
		f.call.Cookie, f.call.Called = printable(t.Cookie), printable(t.Called)
	case t.Kind == x224.ConnectionConfirm:
		if f.stage != wantConfirm || from == f.caller {
			return nil, errSequence
		}
		f.stage = wantConnect
		if t.Sealed() {
			f.stage = opaque
			return f.pass(p), f.sealed()
		}
	default:
		return f.data(from, p, t)
	}
	return f.pass(p), nil
}

func (f *front) pass(p tpkt.Packet) []byte {
	out, _ := tpkt.Append(nil, p.Second, p.Payload) // it was a TPKT before
	return out
}

// sealed decides on a session of which nothing more can be read: only RDP begins so.
func (f *front) sealed() error { return f.decide(&f.call, true) }

// printable returns b if it is text without control characters, bounded.
func printable(b []byte) string {
	b = b[:min(len(b), 128)]
	for _, c := range b {
		if c < 0x20 || c > 0x7e {
			return ""
		}
	}
	return string(b)
}

// data handles DT: connect PDUs first, domain PDUs then.
func (f *front) data(from int, p tpkt.Packet, t x224.TPDU) ([]byte, error) {
	switch {
	case f.stage == open:
		return f.domain(from, p, t)
	case f.stage == wantConnect && from == f.caller, f.stage == wantAnswer && from != f.caller:
	default:
		return nil, errSequence
	}
	if len(f.unit)+len(t.User) > maxConnect || len(f.held) > 2*maxConnect {
		return nil, errSize
	}
	f.unit = append(f.unit, t.User...)
	f.held = append(f.held, f.pass(p)...)
	if !t.Last {
		return nil, nil
	}
	unit, held := f.unit, f.held
	f.unit, f.held = nil, nil
	c, err := mcs.ParseConnect(unit)
	if err != nil {
		return nil, errors.Join(errMCS, err)
	}
	if f.stage == wantConnect {
		return held, f.initial(c)
	}
	return f.answer(c, unit, held)
}

// initial takes the caller's connect PDU.
func (f *front) initial(c mcs.Connect) error {
	f.connect = c
	f.stage = wantAnswer
	switch c.Kind {
	case mcs.ConnectAdditional:
		return nil
	case mcs.ConnectInitial:
	default:
		return errSequence
	}
	if f.editor == nil {
		f.editor = gcc.NewEditor()
	}
	info, err := f.editor.Connect(c.UserData)
	if err != nil {
		return errors.Join(errGCC, err)
	}
	f.info = info
	f.call.Conference, f.call.Caller = info.Conference, info.Caller
	if f.call.Called == "" {
		f.call.Called = printable(c.Called)
	}
	return f.decide(&f.call, info.RDP)
}

// answer takes the called side's connect PDU. A query's answer lists conferences with their addresses.
func (f *front) answer(c mcs.Connect, unit, held []byte) ([]byte, error) {
	want := mcs.ConnectResponse
	if f.connect.Kind == mcs.ConnectAdditional {
		want = mcs.ConnectResult
	}
	if c.Kind != want {
		return nil, errSequence
	}
	f.stage = open
	f.joined, f.id = c.Result == mcs.Successful, c.ConnectID
	if c.Kind == mcs.ConnectResult || len(c.UserData) == 0 {
		return held, nil
	}
	info, err := f.editor.Connect(c.UserData)
	if err != nil {
		return nil, errors.Join(errGCC, err)
	}
	f.nodes = append(f.nodes, info.Nodes...)
	if f.info.RDP || f.cfg.Addresses == AddressesPass {
		f.stage = opaque
		return held, nil
	}
	to, ok := f.hide(1 - f.caller)
	if info.Kind != "conferenceQueryResponse" || !ok {
		return held, nil
	}
	user, change, err := f.editor.ConnectAddresses(c.UserData, to)
	if err != nil {
		return nil, errors.Join(errGCC, err)
	}
	f.count(change)
	if change.Removed+change.Replaced == 0 {
		return held, nil
	}
	return tpkt.Append(nil, 0, x224.AppendData(nil, c.WithUserData(unit, user)))
}

func (f *front) count(c gcc.Change) {
	f.change.Removed += c.Removed
	f.change.Replaced += c.Replaced
	f.change.Kept += c.Kept
}

// confirmed has the edge itself confirm the request, so that the caller says whom he wants: it returns the CC.
func (f *front) confirmed() []byte {
	f.stage = wantConnect
	out, _ := tpkt.Append(nil, 0, x224.Confirm(f.request, f.tpdu))
	return out
}

// lateConfirm checks the target's CC when the edge has confirmed before.
func (f *front) lateConfirm(p tpkt.Packet) error {
	t, err := x224.Parse(p.Payload)
	switch {
	case err != nil:
		return errors.Join(errX224, err)
	case t.Kind != x224.ConnectionConfirm || !t.Plain() || t.Size != f.tpdu.Size:
		return errConfirm // the caller was promised something else
	}
	return nil
}

// refusal returns what tells the caller that he is refused; nil if there is no way to say so.
func (f *front) refusal(err error) []byte {
	var payload []byte
	switch {
	case f.stage == wantConfirm:
		code := x224.Unspecified
		if errors.Is(err, errRoute) {
			code = x224.AddressUnknown
		}
		payload = x224.Disconnect(f.tpdu, code)
	case f.stage == wantAnswer && (f.connect.Kind == mcs.ConnectInitial || f.connect.Kind == mcs.ConnectAdditional):
		code := byte(mcs.UnspecifiedFailure)
		if errors.Is(err, errPolicy) || errors.Is(err, errRDP) {
			code = mcs.UserRejected
		}
		payload = x224.AppendData(nil, f.connect.Refuse(code))
	default:
		return nil
	}
	out, _ := tpkt.Append(nil, 0, payload)
	return out
}
