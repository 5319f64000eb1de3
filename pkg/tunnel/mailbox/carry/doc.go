// Package carry moves messages between an agent and the mailboxes of its relay, over streams of the tunnel's session.
// It does not know what a message says: package letter seals and opens.
//
//	head of a stream: kind 16 | what for: send 1, read 2, fetch 3, ask 4
//	frame: type 1 | length 4 | payload, at most 256 KiB
//
//	send:   Put ─►                       ◄─ Stored | Refused      small ones: many under way, answered in order
//	        Put (large) ─► ◄─ GoOn(offset)   From(offset), Data… ─►   ◄─ Stored | Refused
//	read:   Read(after) ─►  ◄─ Hello(store), Message…   Ack(upto) ─► ◄─ Acked(upto)
//	fetch:  Fetch(seq, offset) ─► ◄─ Data… | Refused
//	ask:    Publish(card) | Lookup(devices) | Status | Ack ─► ◄─ Done | Cards | State | Acked | Refused
//
// Numbers are big-endian. The server judges each length before it allocates; what breaks a rule ends the stream.
package carry
