package userpath

import (
	"encoding/binary"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/media"
)

const (
	// maxSegments and maxJoined bound what is sent in a piece: 64 packets is what every kernel takes
	// (UDP_MAX_SEGMENTS), and the sum must be a valid UDP datagram over IPv4 and IPv6.
	maxSegments = 64
	maxJoined   = 65000
)

// queue holds what will leave by one socket. Packets of one flow that follow one another, all of one size but
// for the last, which may be shorter, leave in a piece: the kernel makes packets of it again (UDP_SEGMENT),
// or the network card does, and all that is done per packet before is done once.
type queue struct {
	n, vecs int
	out     [batch]mmsghdr
	vec     [maxVecs]unix.Iovec
	// heads[i] is what vec[i] holds where that is what goes before a packet.
	heads [maxVecs][media.TagLen]byte
	runs  [batch]run
	// one and piece are the message of send.
	one   [1]mmsghdr
	piece [1]unix.Iovec
}

// maxVecs is how many pieces a queue may hold. A batch has two for each message, and more only where the kernel has
// joined packets that need a header each.
const maxVecs = 4 * batch

// run says what one message of a queue is.
type run struct {
	flow *media.Flow
	// entry is the socket that it came by.
	entry *entry
	// size is that of each packet but the last, total the sum, headers included.
	size, total int
	segments    int
	// headed says that each packet is two vectors: what goes before it and itself. Else each vector is one or several.
	headed  bool
	control [24]byte // CmsgSpace(2)
}

// segments returns of how many packets of size bytes b consists.
func segments(b []byte, size int) int {
	if len(b) <= size {
		return 1
	}
	return (len(b) + size - 1) / size
}

// add queues b, which holds packets of size bytes that came to e for f. It sends what leaves by another socket.
func (q *queue) add(e *entry, f *media.Flow, b []byte, size int) {
	if q.n > 0 && q.runs[0].flow.Out != f.Out || q.n == batch || q.vecs+2 > maxVecs {
		q.flush()
	}
	count := segments(b, size)
	head, headed := f.Header(len(b))
	if count > 1 && (e.single || headed) {
		for ; len(b) > 0; b = b[min(size, len(b)):] {
			one := b[:min(size, len(b))]
			q.add(e, f, one, len(one))
		}
		return
	}
	length := len(b)
	if headed {
		q.heads[q.vecs] = head
		q.push(q.heads[q.vecs][:])
		length += len(head)
		size = length
	}
	q.push(b)
	if !e.single && q.join(f, length, size, count) {
		return
	}
	r, hdr := &q.runs[q.n], &q.out[q.n].hdr
	q.n++
	r.flow, r.entry, r.size, r.total, r.segments, r.headed = f, e, size, length, count, headed
	hdr.Name, hdr.Namelen = &f.To.Raw[0], f.To.Len
	hdr.Iov = &q.vec[q.vecs-r.pieces()]
	hdr.SetIovlen(r.pieces())
	hdr.Control = nil
	hdr.SetControllen(0)
	if count > 1 {
		r.mark(hdr)
	}
}

// push makes b the next vector.
func (q *queue) push(b []byte) {
	v := &q.vec[q.vecs]
	q.vecs++
	v.Base = unsafe.SliceData(b)
	v.SetLen(len(b))
}

// join makes the last packet part of the last message, if it may be.
func (q *queue) join(f *media.Flow, length, size, count int) bool {
	if q.n == 0 {
		return false
	}
	r := &q.runs[q.n-1]
	fits := r.flow == f && r.size > 0 && r.total%r.size == 0 && length > 0 &&
		(size == r.size || count == 1 && length < r.size)
	if !fits || r.segments+count > maxSegments || r.total+length > maxJoined {
		return false
	}
	r.total += length
	r.segments += count
	hdr := &q.out[q.n-1].hdr
	hdr.SetIovlen(int(hdr.Iovlen) + r.pieces())
	r.mark(hdr)
	return true
}

// pieces returns of how many vectors a packet consists.
func (r *run) pieces() int {
	if r.headed {
		return 2
	}
	return 1
}

// mark tells the kernel into what packets to cut the message.
func (r *run) mark(hdr *unix.Msghdr) {
	h := (*unix.Cmsghdr)(unsafe.Pointer(&r.control[0]))
	h.Level, h.Type = unix.SOL_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(2))
	binary.NativeEndian.PutUint16(r.control[unix.CmsgLen(0):], uint16(r.size))
	hdr.Control = &r.control[0]
	hdr.SetControllen(len(r.control))
}

// waits tells whether what is queued may wait for what other sockets have: it leaves by a socket that is the way
// out for many.
func (q *queue) waits() bool { return q.n > 0 && q.runs[0].flow.Out.Channels != nil }

// flush sends what is queued.
func (q *queue) flush() {
	n := q.n
	if n == 0 {
		return
	}
	fd := q.runs[0].flow.Out.FD
	retried := false
	for at := 0; at < n; {
		sent, errno := sendmmsg(fd, q.out[at:n])
		if errno == 0 {
			q.show(at, at+sent)
			at += sent
			retried = false
			continue
		}
		if (pendingError(errno) || errno == unix.EINTR) && !retried {
			// The error of an earlier packet (ICMP): reading it has cleared it.
			retried = true
			continue
		}
		retried = false
		r := &q.runs[at]
		if r.segments > 1 && refused(errno) {
			r.entry.single = true
			q.sendEach(at)
		} else {
			r.flow.Counters.Drop(reason(errno), r.segments)
		}
		at++
		if errno == unix.EAGAIN {
			for ; at < n; at++ {
				q.runs[at].flow.Counters.Drop(media.Congested, q.runs[at].segments)
			}
		}
	}
	for i := range n {
		q.runs[i].flow, q.runs[i].entry = nil, nil
	}
	q.n, q.vecs = 0, 0
}

// refused tells whether the kernel may take the packets one by one: they are longer than the MTU, or the
// way out has no checksum offload, or transforms packets.
func refused(errno unix.Errno) bool {
	return errno == unix.EINVAL || errno == unix.EIO || errno == unix.EMSGSIZE || errno == unix.EOPNOTSUPP
}

// sendEach sends the packets of message i one by one.
func (q *queue) sendEach(i int) {
	r := &q.runs[i]
	for vecs := unsafe.Slice(q.out[i].hdr.Iov, int(q.out[i].hdr.Iovlen)); len(vecs) > 0; vecs = vecs[r.pieces():] {
		if r.headed {
			q.send(r.flow, vecs[:r.pieces()])
			continue
		}
		for b := unsafe.Slice(vecs[0].Base, int(vecs[0].Len)); len(b) > 0; b = b[min(r.size, len(b)):] {
			q.piece[0].Base = &b[0]
			q.piece[0].SetLen(min(r.size, len(b)))
			q.send(r.flow, q.piece[:])
		}
	}
}

// send sends one packet.
func (q *queue) send(f *media.Flow, packet []unix.Iovec) {
	hdr := &q.one[0].hdr
	hdr.Name, hdr.Namelen = &f.To.Raw[0], f.To.Len
	hdr.Iov = &packet[0]
	hdr.SetIovlen(len(packet))
	var errno unix.Errno
	for range 2 { // the first time, the error may be that of an earlier packet
		if _, errno = sendmmsg(f.Out.FD, q.one[:]); !pendingError(errno) && errno != unix.EINTR {
			break
		}
	}
	if errno != 0 {
		f.Counters.Drop(reason(errno), 1)
	} else if f.Tapped() {
		f.Left(time.Now(), inOnePiece(packet))
	}
}

// show shows messages that were sent to the taps of their flows.
func (q *queue) show(from, to int) {
	for i := from; i < to; i++ {
		r := &q.runs[i]
		if !r.flow.Tapped() {
			continue
		}
		now := time.Now()
		for vecs := unsafe.Slice(q.out[i].hdr.Iov, int(q.out[i].hdr.Iovlen)); len(vecs) > 0; vecs = vecs[r.pieces():] {
			for b := inOnePiece(vecs[:r.pieces()]); len(b) > 0; b = b[min(r.size, len(b)):] {
				r.flow.Left(now, b[:min(r.size, len(b))])
			}
		}
	}
}

// inOnePiece returns what vectors hold, in memory of its own if they are several.
func inOnePiece(vecs []unix.Iovec) []byte {
	first := unsafe.Slice(vecs[0].Base, int(vecs[0].Len))
	if len(vecs) == 1 {
		return first
	}
	out := append([]byte(nil), first...)
	for _, v := range vecs[1:] {
		out = append(out, unsafe.Slice(v.Base, int(v.Len))...)
	}
	return out
}

func pendingError(errno unix.Errno) bool {
	return errno == unix.ECONNREFUSED || errno == unix.EHOSTUNREACH || errno == unix.ENETUNREACH ||
		errno == unix.EMSGSIZE || errno == unix.EPROTO || errno == unix.EACCES
}

func reason(errno unix.Errno) media.Reason {
	switch errno {
	case unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM:
		return media.Congested
	case unix.EMSGSIZE:
		return media.TooBig
	}
	return media.SendError
}
