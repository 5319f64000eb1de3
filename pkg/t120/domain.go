package t120

import (
	"slices"

	"edged.dev/edged/internal/tpkt"
	"edged.dev/edged/pkg/t120/gcc"
	"edged.dev/edged/pkg/t120/mcs"
	"edged.dev/edged/pkg/t120/x224"
)

// Domain PDUs on the way, those of GCC with their addresses edited. A PDU may be cut twice: X.224 cuts it into DTs, of which
// the last has EOT, and MCS cuts its data into SendData of which the first has begin and the last end:
//
//	DT … DT(EOT) ─► unit ── not GCC ──► passes at once
//	                 └─ SendData(begin) … SendData(end) ─► GCCPDU ─► edited ─► cut as it was
//
// What is held is bounded, in octets and in number; what nothing is changed in goes on as it came.

const (
	// gccBroadcast is the channel of GCC's broadcasts (T.124 §7.1); its other PDUs go on the channels of its nodes.
	gccBroadcast = 1
	// maxNodes bounds the nodes of a conference that are remembered.
	maxNodes = 64
	// maxHeld bounds what is held of one side, in octets, and maxAssemblies the PDUs.
	maxHeld       = 64 << 10
	maxAssemblies = 8
)

// parts is what has come from a side that is not whole yet.
type parts struct {
	unit     []byte // of a unit in several DTs
	held     []byte // these, as they came
	longest  int    // the most data in one of them
	passing  bool   // the rest of the unit is not looked at
	segments []*assembly
	octets   int // held in segments
}

// assembly is a GCCPDU of which some segments have come.
type assembly struct {
	first mcs.SendData
	data  []byte
	held  []byte // TPKTs, as they came
	// chunk is the most data in one segment, dt the most data in one DT.
	chunk, dt int
}

// domain handles a DT once the conference is open.
func (f *front) domain(from int, p tpkt.Packet, t x224.TPDU) ([]byte, error) {
	s := &f.parts[from]
	if s.passing {
		s.passing = !t.Last
		return f.pass(p), nil
	}
	if len(s.unit)+len(t.User) > maxConnect || len(s.held) > 2*maxConnect {
		return nil, errSize
	}
	if len(s.held) == 0 && t.Last {
		return f.pdu(from, t.User, f.pass(p), len(t.User))
	}
	s.unit, s.held, s.longest = append(s.unit, t.User...), append(s.held, f.pass(p)...), max(s.longest, len(t.User))
	if !t.Last && (len(s.unit) < mcs.FrontLen || f.edits(from, s.unit)) {
		return nil, nil
	}
	unit, held, longest := s.unit, s.held, s.longest
	s.unit, s.held, s.longest, s.passing = nil, nil, 0, !t.Last
	if !t.Last {
		return held, nil
	}
	return f.pdu(from, unit, held, longest)
}

// edits tells whether addresses are to be edited in a PDU of a side, by its front.
func (f *front) edits(from int, unit []byte) bool {
	d, ok := mcs.ParseSendData(unit)
	if !ok || d.Channel != gccBroadcast && !slices.Contains(f.nodes, d.Channel) {
		return false
	}
	_, ok = f.hide(from)
	return ok
}

// pdu handles a whole MCS PDU; held is what it came in, dt the most data of a DT there.
func (f *front) pdu(from int, unit, held []byte, dt int) ([]byte, error) {
	if !f.edits(from, unit) {
		return held, nil
	}
	if f.editor == nil {
		f.editor = gcc.NewEditor()
	}
	d, _ := mcs.ParseSendData(unit)
	if !d.Begin || !d.End {
		return f.segment(from, d, unit, held, dt)
	}
	to, _ := f.hide(from)
	user, change, nodes, err := f.editor.SendData(unit, to)
	f.learn(nodes)
	if err != nil || change.Removed+change.Replaced == 0 {
		f.count(gcc.Change{Kept: change.Kept})
		return held, nil
	}
	if dt == len(unit) {
		dt = len(user) // one DT it was, one it stays
	}
	out, err := cut(nil, user, dt)
	if err != nil {
		return held, nil
	}
	f.count(change)
	return out, nil
}

// learn remembers GCC providers that a roster shows.
func (f *front) learn(nodes []uint16) {
	for _, n := range nodes {
		if len(f.nodes) < maxNodes && !slices.Contains(f.nodes, n) {
			f.nodes = append(f.nodes, n)
		}
	}
}

// segment handles one of several segments. It returns nothing until the last has come.
func (f *front) segment(from int, d mcs.SendData, unit, held []byte, dt int) ([]byte, error) {
	s := &f.parts[from]
	user, err := f.editor.UserData(unit)
	i := slices.IndexFunc(s.segments, func(a *assembly) bool { return a.first.Front == d.Front })
	if err != nil || !d.Begin && i < 0 {
		return append(s.drop(i), held...), nil // no segment, or none of anything
	}
	var broken []byte
	if d.Begin {
		broken = s.drop(i) // one that has never ended
		if len(s.segments) >= maxAssemblies {
			return nil, errSize
		}
		i = len(s.segments)
		s.segments = append(s.segments, &assembly{first: d})
	}
	if s.octets += len(held); s.octets > maxHeld {
		return nil, errSize
	}
	a := s.segments[i]
	a.data, a.held, a.chunk, a.dt = append(a.data, user...), append(a.held, held...), max(a.chunk, len(user)), max(a.dt, dt)
	if !d.End {
		return broken, nil
	}
	s.drop(i)
	return append(broken, f.assembled(from, a)...), nil
}

// drop forgets an assembly and returns what was held of it; i is -1 if there is none.
func (s *parts) drop(i int) []byte {
	if i < 0 {
		return nil
	}
	held := s.segments[i].held
	s.octets -= len(held)
	s.segments = slices.Delete(s.segments, i, i+1)
	return held
}

// assembled returns the segments of a whole GCCPDU, edited and cut as it was.
func (f *front) assembled(from int, a *assembly) []byte {
	to, _ := f.hide(from)
	pdu, change, nodes, err := f.editor.PDU(a.data, to)
	f.learn(nodes)
	if err != nil || change.Removed+change.Replaced == 0 {
		f.count(gcc.Change{Kept: change.Kept})
		return a.held
	}
	var out []byte
	size := max(1, min(a.chunk, mcs.MaxSegment))
	for rest := pdu; ; rest = rest[size:] {
		n := min(size, len(rest))
		unit := a.first.AppendSegment(nil, rest[:n], len(rest) == len(pdu), n == len(rest))
		if out, err = cut(out, unit, a.dt); err != nil {
			return a.held
		}
		if n == len(rest) {
			break
		}
	}
	f.count(change)
	return out
}

// cut appends a unit as DTs of at most size octets of data, each in a TPKT.
func cut(dst, unit []byte, size int) ([]byte, error) {
	for {
		n := min(size, len(unit))
		dt := x224.AppendData(nil, unit[:n])
		if n < len(unit) {
			dt[2] = 0 // no EOT
		}
		out, err := tpkt.Append(dst, 0, dt)
		if err != nil || n == len(unit) {
			return out, err
		}
		dst, unit = out, unit[n:]
	}
}
