package userpath

import (
	"encoding/binary"
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
	vec     [batch]unix.Iovec
	runs    [batch]run
	// one and pair are the message of sendPrefixed.
	one  [1]mmsghdr
	pair [2]unix.Iovec
}

// run says what one message of a queue is.
type run struct {
	flow *media.Flow
	// size is that of each packet but the last, total the sum.
	size, total int
	segments    int
	control     [24]byte // CmsgSpace(2)
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
	if q.n > 0 && q.runs[0].flow.Out != f.Out {
		q.flush(e)
	}
	count := segments(b, size)
	if f.Prefixed {
		q.flush(e)
		for ; len(b) > 0; b = b[min(size, len(b)):] {
			q.sendPrefixed(f, b[:min(size, len(b))])
		}
		return
	}
	if e.single && count > 1 {
		q.flush(e)
		for ; len(b) > 0; b = b[min(size, len(b)):] {
			q.send(f, b[:min(size, len(b))])
		}
		return
	}
	v := &q.vec[q.vecs]
	q.vecs++
	v.Base = unsafe.SliceData(b)
	v.SetLen(len(b))
	if !e.single && q.join(f, len(b), size, count) {
		return
	}
	r, hdr := &q.runs[q.n], &q.out[q.n].hdr
	q.n++
	r.flow, r.size, r.total, r.segments = f, size, len(b), count
	hdr.Name, hdr.Namelen = &f.To.Raw[0], f.To.Len
	hdr.Iov = v
	hdr.SetIovlen(1)
	hdr.Control = nil
	hdr.SetControllen(0)
	if count > 1 {
		r.mark(hdr)
	}
}

// join makes the last vector part of the last message, if it may be.
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
	hdr.SetIovlen(int(hdr.Iovlen) + 1)
	r.mark(hdr)
	return true
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

// flush sends what is queued.
func (q *queue) flush(e *entry) {
	n := q.n
	if n == 0 {
		return
	}
	fd := q.runs[0].flow.Out.FD
	retried := false
	for at := 0; at < n; {
		sent, errno := sendmmsg(fd, q.out[at:n])
		if errno == 0 {
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
			e.single = true
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
		q.runs[i].flow = nil
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
	for _, v := range unsafe.Slice(q.out[i].hdr.Iov, int(q.out[i].hdr.Iovlen)) {
		for b := unsafe.Slice(v.Base, int(v.Len)); len(b) > 0; b = b[min(r.size, len(b)):] {
			q.send(r.flow, b[:min(r.size, len(b))])
		}
	}
}

// send sends one packet, which is not empty.
func (q *queue) send(f *media.Flow, b []byte) {
	var errno unix.Errno
	for range 2 { // the first time, the error may be that of an earlier packet
		_, _, errno = unix.RawSyscall6(unix.SYS_SENDTO, uintptr(f.Out.FD), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)),
			unix.MSG_DONTWAIT, uintptr(unsafe.Pointer(&f.To.Raw[0])), uintptr(f.To.Len))
		if !pendingError(errno) && errno != unix.EINTR {
			break
		}
	}
	if errno != 0 {
		f.Counters.Drop(reason(errno), 1)
	}
}

// sendPrefixed sends one packet, which is not empty, with the flow's prefix before it.
func (q *queue) sendPrefixed(f *media.Flow, b []byte) {
	q.pair[0].Base, q.pair[1].Base = &f.Prefix[0], &b[0]
	q.pair[0].SetLen(len(f.Prefix))
	q.pair[1].SetLen(len(b))
	hdr := &q.one[0].hdr
	hdr.Name, hdr.Namelen = &f.To.Raw[0], f.To.Len
	hdr.Iov = &q.pair[0]
	hdr.SetIovlen(len(q.pair))
	var errno unix.Errno
	for range 2 { // the first time, the error may be that of an earlier packet
		if _, errno = sendmmsg(f.Out.FD, q.one[:]); !pendingError(errno) && errno != unix.EINTR {
			break
		}
	}
	if errno != 0 {
		f.Counters.Drop(reason(errno), 1)
	}
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
