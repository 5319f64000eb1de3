package trace

import (
	"net/netip"
	"time"
)

// Step says of a message what it was, without its text.
type Step struct {
	Time               time.Time
	Out                bool
	Network, Transport string
	Remote             netip.AddrPort
	// Protocol is "" for SIP; Kind is the method of SIP, or the other protocol's name of the message.
	Protocol, Kind string
	// CSeq and Status are SIP's; Status is 0 of a request.
	CSeq   string
	Status int
}

// Steps returns what is known of a call's messages, by Call-ID or name; nil if nothing is.
func (r *Ring) Steps(id string) []Step {
	msgs, _ := r.Messages(id, 0, true) // whose text stays here
	list := make([]Step, 0, len(msgs))
	for _, m := range msgs {
		s := Step{Time: m.Time, Out: m.Out, Network: m.Network, Transport: m.Transport, Remote: m.Remote, Protocol: m.Protocol, Kind: m.Kind}
		if m.Protocol == "" {
			h := scan(m.Data)
			s.Kind, s.CSeq, s.Status = string(h.method), string(h.cseq), h.status
		}
		list = append(list, s)
	}
	return list
}
