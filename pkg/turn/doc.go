// Package turn is a STUN and TURN server (RFC 8489, 8656, 6062, 5780). It is a guard around pion/turn: every octet of
// the network is read here first. The guard authenticates, judges peers, keeps quotas, answers where pion is silent or
// wrong, keeps allocations of UDP with their permissions and channels, and relays data; pion relays TCP (RFC 6062), and
// gets no message but those that the guard has composed. It is no ICE agent and rewrites nothing.
//
//	socket ─► frame ─► parse ─┬─ Binding ─► answer (rate-limited)
//	                          ├─ ChannelData, Send ─► allocation? permission? policy? ─► relay port ─► peer
//	                          └─ request ─► signed? ─► method's rules ─┬─ UDP ─► answer
//	                                                                   └─ TCP ─► composed anew ─► pion ─► answer
//	peer ─► relay port ─► channel or permission? ─► ChannelData or Data ─► client
//
// Relay ports come from the relay (pinhole.PortOpener), which may move channels by itself, in the kernel too.
package turn
