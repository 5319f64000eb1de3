package pinhole

// ICE has the relay answer the connectivity checks of a peer (RFC 8445), as a lite agent at its one address: it makes none of
// its own. The peer is then heard and sent to where its checks have nominated, and nowhere else; what Remote.Addr and
// Remote.RTCP say counts no longer, but for whether they are one. A lease whose ICE changes answers to the
// credentials before as well, as the peer goes on with them until it knows the new ones.
type ICE struct {
	// Ufrag and Pwd are the relay's own user fragment and password, as signalling tells the peer.
	Ufrag, Pwd string
	// Peer is the peer's user fragment.
	Peer string
}
