package h323

import (
	"edged.dev/edged/pkg/h323/h225"
	"edged.dev/edged/pkg/h323/h245"
	"edged.dev/edged/pkg/h323/q931"
)

// The rest of the family of H.460 that is about NAT, which the edge does not speak:
//
//	.17  RAS in call signalling      declined: the connection is closed, the gatekeeper has not offered it
//	.23  what NAT is there, by STUN  declined: taken out of call signalling and of RAS
//	.24  media past the gatekeeper   declined: as .23, and the addresses in OpenLogicalChannel are taken out
//	.26  media in call signalling    passes between two endpoints that agree on it; taken out of RAS

// rasOverSignalling, natDetection and directMedia are features of H.460.
const (
	rasOverSignalling = 17
	natDetection      = 23
	directMedia       = 24
)

// tunnelsRAS tells whether a message carries RAS (H.460.17), outside of any call.
func tunnelsRAS(m *h225.Message) bool {
	if m.Type != q931.Facility || m.Tree == nil {
		return false
	}
	for _, f := range h225.Features(nil, m.Tree) {
		if f.ID == rasOverSignalling {
			return true
		}
	}
	return false
}

// declineDirect takes the features out by which two endpoints would send media past the edge.
func (x *exchange) declineDirect() error {
	for _, f := range h225.Features(nil, x.tree) {
		if f.ID != natDetection && f.ID != directMedia {
			continue
		}
		if err := x.editor.Drop(f.Ref); err != nil {
			return err
		}
	}
	return nil
}

// dropDirect takes the addresses out of a channel at which H.460.24 would have media sent past the edge.
func (x *exchange) dropDirect(ch h245.Channel) error {
	if !ch.Generic {
		return nil
	}
	for _, r := range h245.DirectAt(x.tree, x.tree.Child(ch.Ref, "genericInformation")) {
		if err := x.editor.Drop(r); err != nil {
			return err
		}
	}
	return nil
}
