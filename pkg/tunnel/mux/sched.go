package mux

import "container/list"

// Weights of DRR. A weight is worth a quantum of 1 KiB a turn, so that a
// default stream sends one full frame.
const (
	defaultWeight = maxFrame / 1024
	maxWeight     = 64 * defaultWeight
)

// sched orders the streams that have bytes to send: deficit round robin over
// owners, and among the streams of an owner (Shreedhar and Varghese, 1995).
// Streams without credit are not in it.
type sched struct {
	owners list.List // of *owner with streams
	byName map[string]*owner
}

type owner struct {
	name    string
	deficit int
	streams list.List // of *Stream
	at      *list.Element
}

// turn is a stream's place in the scheduler.
type turn struct {
	owner   string
	weight  int
	deficit int
	at      *list.Element // nil: not in it
	of      *owner
}

func (q *sched) add(st *Stream) {
	t := &st.turn
	if t.at != nil {
		return
	}
	o := q.byName[t.owner]
	if o == nil {
		if q.byName == nil {
			q.byName = map[string]*owner{}
		}
		o = &owner{name: t.owner}
		o.at = q.owners.PushBack(o)
		q.byName[t.owner] = o
	}
	t.of, t.deficit = o, 0
	t.at = o.streams.PushBack(st)
}

func (q *sched) remove(st *Stream) {
	t := &st.turn
	if t.at == nil {
		return
	}
	o := t.of
	o.streams.Remove(t.at)
	t.at, t.of = nil, nil
	if o.streams.Len() == 0 {
		q.owners.Remove(o.at)
		delete(q.byName, o.name)
	}
}

// next returns the stream whose turn it is, nil if there is none.
func (q *sched) next() *Stream {
	for q.owners.Len() > 0 {
		o := q.owners.Front().Value.(*owner)
		if o.deficit <= 0 {
			o.deficit += maxFrame
			q.owners.MoveToBack(o.at)
			continue
		}
		for {
			st := o.streams.Front().Value.(*Stream)
			if st.turn.deficit > 0 {
				return st
			}
			st.turn.deficit += st.turn.weight * 1024
			o.streams.MoveToBack(st.turn.at)
		}
	}
	return nil
}

// spent counts n bytes that the stream sent in its turn.
func (t *turn) spent(n int) {
	t.deficit -= n
	t.of.deficit -= n
}
