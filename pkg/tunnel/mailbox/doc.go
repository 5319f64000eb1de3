// Package mailbox keeps messages for devices that are away: a durable queue for each device, on disk, in the relay.
// Bodies are opaque here: what is sent between devices is sealed by package letter, and carried by package carry.
// It is not a message bus: nobody subscribes to subjects, and a message is gone once its readers have acknowledged it.
//
//	Append ──► room? ──► group commit ──► synced ──► Receipt          (docs/adr/0011)
//	Begin ─► Upload ─► Write… ─► Commit ─┘  a file for each large body, resumable
//	Wait ─► Read(after) ─► Entry, Body ─► Ack(upto) ──► group commit ──► deleted
//
// A sender numbers its messages 1, 2, 3… within an epoch that it chose; the store takes each number once, so a
// message that is sent again because the answer was lost is not stored again. Readers see growing sequence numbers.
package mailbox
