package sipalg

import (
	"edged.dev/edged/pkg/sipalg/flow"
)

// Output collects what the core wants done: the outer half does it after it has let go of the lock.
// It is reusable.
type Output struct {
	arena []byte
	items []item
}

type item struct {
	flow    flow.Flow
	target  *flow.Target // instead of flow: a connection may have to be made
	tx      uint64       // who is told the outcome of a target, or the failure of a flow; 0 = nobody
	data    []byte       // to send, if owned by a transaction
	off, n  int          // else a part of the arena
	resolve *query       // instead of sending: a name to be resolved
	record  *Record      // instead of sending: a call record
}

// query is a name to be resolved (RFC 3263) for a transaction or a server.
type query struct {
	id      uint64
	network string
	server  server
}

func (o *Output) reset() {
	o.arena = o.arena[:0]
	clear(o.items)
	o.items = o.items[:0]
}

// bytes returns the message of item i.
func (o *Output) bytes(i int) []byte {
	it := &o.items[i]
	if it.data != nil {
		return it.data
	}
	return o.arena[it.off : it.off+it.n]
}

// send queues data, which must not change any more, for f. The transaction tx is told of a failure; 0 = nobody.
func (o *Output) send(f flow.Flow, data []byte, tx uint64) {
	o.items = append(o.items, item{flow: f, data: data, tx: tx})
}

// sendCopy queues a copy of data for f.
func (o *Output) sendCopy(f flow.Flow, data []byte) {
	off := len(o.arena)
	o.arena = append(o.arena, data...)
	o.items = append(o.items, item{flow: f, off: off, n: len(data)})
}
