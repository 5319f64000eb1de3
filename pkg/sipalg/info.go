package sipalg

import (
	"time"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg/sipmsg"
)

// Record is a call record, written when a call ends (one JSON line each).
type Record struct {
	ID       string         `json:"id"`
	CallID   string         `json:"call_id"`
	From     string         `json:"from"`
	To       string         `json:"to"`
	Networks [2]string      `json:"networks"` // caller's, callee's
	Caller   string         `json:"caller"`   // signalling address
	Callee   string         `json:"callee,omitempty"`
	Started  time.Time      `json:"started"`
	Answered *time.Time     `json:"answered,omitempty"`
	Ended    time.Time      `json:"ended"`
	Seconds  float64        `json:"seconds"` // from answer to end
	Status   int            `json:"status"`
	Reason   string         `json:"reason"`
	Streams  []StreamRecord `json:"streams,omitempty"`
}

// StreamRecord is what one pinhole of a call has carried.
type StreamRecord struct {
	Kind   string    `json:"kind"` // rtp, udp, tcp
	Opened time.Time `json:"opened"`
	Closed time.Time `json:"closed"`
	// Received is what came from the caller's side and from the callee's.
	Received [2]StreamTotal `json:"received"`
}

// StreamTotal is a [pinhole.StreamStats] with units in its names.
type StreamTotal struct {
	Packets       uint64  `json:"packets"`
	Bytes         uint64  `json:"bytes"`
	Dropped       uint64  `json:"dropped"`
	Lost          int64   `json:"lost"`
	JitterSeconds float64 `json:"jitter_seconds"`
	RTTSeconds    float64 `json:"rtt_seconds,omitempty"`
	MOS           float64 `json:"mos,omitempty"`
}

// NewStreamRecord describes a pinhole of that kind.
func NewStreamRecord(kind pinhole.Kind, sum pinhole.Summary) StreamRecord {
	r := StreamRecord{Kind: kind.String(), Opened: sum.Opened, Closed: sum.Closed}
	for i, s := range sum.From {
		r.Received[i] = StreamTotal{s.Packets, s.Bytes, s.Dropped, s.Lost, s.Jitter.Seconds(), s.RTT.Seconds(), s.MOS}
	}
	return r
}

func (c *Core) record(s *session) *Record {
	r := &Record{
		ID: string(appendHex(nil, s.id)), CallID: s.callID, From: addrSpec(s.from), To: addrSpec(s.to), Networks: s.networks,
		Caller: s.flows[pinhole.Near].Remote.String(), Started: s.started, Ended: c.now, Status: s.status, Reason: s.reason,
	}
	if s.flows[pinhole.Far].Remote.IsValid() {
		r.Callee = s.flows[pinhole.Far].Remote.String()
	}
	if !s.answered.IsZero() {
		a := s.answered
		r.Answered, r.Seconds = &a, c.now.Sub(a).Seconds()
	}
	return r
}

func addrSpec(v string) string {
	if na, err := sipmsg.ParseNameAddr([]byte(v)); err == nil {
		return string(na.URI)
	}
	return v
}

// CallInfo is a live call as the API shows it.
type CallInfo struct {
	ID       string     `json:"id"`
	CallID   string     `json:"call_id"`
	From     string     `json:"from"`
	To       string     `json:"to"`
	Networks [2]string  `json:"networks"` // caller's, callee's
	Caller   string     `json:"caller"`
	Callee   string     `json:"callee,omitempty"`
	State    string     `json:"state"` // ringing, up
	Started  time.Time  `json:"started"`
	Answered *time.Time `json:"answered,omitempty"`
	Dialogs  int        `json:"dialogs"`
	Pinholes int        `json:"pinholes"`
}

// Calls lists the live calls.
func (c *Core) Calls() []CallInfo {
	list := make([]CallInfo, 0, len(c.sessions))
	for _, s := range c.sessions {
		i := CallInfo{
			ID: string(appendHex(nil, s.id)), CallID: s.callID, From: addrSpec(s.from), To: addrSpec(s.to), Networks: s.networks,
			Caller: s.flows[pinhole.Near].Remote.String(), State: "ringing", Started: s.started, Dialogs: len(s.dialogs),
		}
		if s.flows[pinhole.Far].Remote.IsValid() {
			i.Callee = s.flows[pinhole.Far].Remote.String()
		}
		if !s.answered.IsZero() {
			a := s.answered
			i.State, i.Answered = "up", &a
		}
		i.Pinholes = s.pinholes()
		list = append(list, i)
	}
	return list
}

func (s *session) pinholes() (n int) {
	count := func(streams []stream) {
		for i := range streams {
			if streams[i].lease != nil {
				n++
			}
		}
	}
	count(s.streams)
	for _, d := range s.dialogs {
		count(d.streams)
	}
	return n
}

// RegistrationInfo is a registered Contact as the API shows it.
type RegistrationInfo struct {
	AOR       string    `json:"aor"`
	Contact   string    `json:"contact"`
	Network   string    `json:"network"`
	Client    string    `json:"client,omitempty"` // where it is reached
	Transport string    `json:"transport,omitempty"`
	Registrar string    `json:"registrar_network"`
	NAT       bool      `json:"nat"`
	Since     time.Time `json:"since"`
	Expires   time.Time `json:"expires"`
}

// Registrations lists the registered Contacts.
func (c *Core) Registrations() []RegistrationInfo {
	list := make([]RegistrationInfo, 0, len(c.bindings))
	for _, b := range c.bindings {
		i := RegistrationInfo{
			AOR: b.aor, Contact: string(b.alias.uri), Network: b.alias.network, Registrar: b.network,
			NAT: b.alias.nat, Since: b.at, Expires: b.expires,
		}
		if f := b.alias.flow; f.Remote.IsValid() {
			i.Client, i.Transport = f.Remote.String(), f.Proto.String()
		}
		list = append(list, i)
	}
	return list
}
