package rfc1350

// side names who sent a packet.
type side uint8

const (
	client side = iota
	server
)

func (s side) other() side { return 1 - s }

// fault ends a transfer: an ERROR to both sides.
type fault struct {
	code    uint16
	message string
	reason  string // label of the counter
}

// verdict says what becomes of a packet: it passes, or it is dropped for a reason, or ends everything.
type verdict struct {
	drop string
	fail *fault
}

// passes tells whether the packet goes on to the other side.
func (v verdict) passes() bool { return v == verdict{} }

func dropped(reason string) verdict { return verdict{drop: reason} }

// transfer follows one transfer: it knows which packets a side may send, how large they may be, and when the last one
// has been acknowledged. It does no I/O.
//
//	read    client RRQ                      server DATA 1, or OACK and then, after ACK 0, DATA 1
//	write   client WRQ                      server ACK 0 or OACK; client DATA 1
//	both    one side DATA, the other ACK, up to a block that is not full; ERROR of either ends it
type transfer struct {
	request  request
	maxSize  int64 // of the file in octets; 0 = any
	block    int   // size of a block
	answered bool  // the server has answered
	began    bool  // there was data
	next     uint16
	last     bool // the block that is not full has been seen: end is its number
	end      uint16
	done     bool // acknowledged, or ended by an error
	failed   bool // by an error
	octets   int64
}

func newTransfer(r request, maxSize int64) *transfer {
	return &transfer{request: r, maxSize: maxSize, block: defaultBlock, next: 1}
}

// source is the side that has the file.
func (t *transfer) source() side {
	if t.request.write {
		return client
	}
	return server
}

// largest returns the largest packet that a side may send, in octets.
func (t *transfer) largest() int {
	block, _ := number(t.request.options, "blksize", 8, maxBlock)
	return max(4+int(block), 4+defaultBlock, maxRequest)
}

// refuse tells why the request is not to be passed on: its size is known to be too large.
func (t *transfer) refuse() *fault {
	if size, ok := number(t.request.options, "tsize", 0, 1<<62); ok && t.request.write && t.tooLarge(size) {
		return &fault{codeFull, "file too large", "too_large"}
	}
	return nil
}

func (t *transfer) tooLarge(octets int64) bool { return t.maxSize > 0 && octets > t.maxSize }

// receive takes a packet of a side.
func (t *transfer) receive(from side, b []byte) verdict {
	p, err := parsePacket(b)
	switch {
	case err != nil:
		return dropped("malformed")
	case from == client && !t.answered:
		return dropped("unexpected") // it cannot know the port yet
	}
	var v verdict
	switch {
	case p.op == opError:
		t.done, t.failed = true, true
	case p.op == opOptions && from == server && !t.began:
		v = t.options(p.options)
	case p.op == opData && from == t.source():
		v = t.data(p)
	case p.op == opAck && from != t.source():
		t.done = t.done || t.last && p.block == t.end
	default:
		v = dropped("unexpected")
	}
	if v.passes() && from == server {
		t.answered = true
	}
	return v
}

// options takes the server's answer to the request's options: it may not name others, nor larger blocks and windows.
func (t *transfer) options(list []option) verdict {
	for _, o := range list {
		if _, asked := find(t.request.options, o.name); !asked {
			return verdict{fail: &fault{codeOptions, "option not requested", "bad_option"}}
		}
	}
	for _, o := range []struct {
		name      string
		low, high int64
	}{{"blksize", 8, maxBlock}, {"windowsize", 1, 65535}} {
		asked, ok := number(t.request.options, o.name, o.low, o.high)
		if _, named := find(list, o.name); !named {
			continue
		}
		given, ok2 := number(list, o.name, o.low, o.high)
		if !ok || !ok2 || given > asked {
			return verdict{fail: &fault{codeOptions, "bad option", "bad_option"}}
		}
		if o.name == "blksize" {
			t.block = int(given)
		}
	}
	if size, ok := number(list, "tsize", 0, 1<<62); ok && t.tooLarge(size) {
		return verdict{fail: &fault{codeFull, "file too large", "too_large"}}
	}
	return verdict{}
}

// data takes a block. What comes again, or out of turn, is not counted again.
func (t *transfer) data(p packet) verdict {
	if len(p.data) > t.block {
		return dropped("oversize")
	}
	t.began = true
	if p.block != t.next {
		return verdict{}
	}
	t.next++
	t.octets += int64(len(p.data))
	if t.tooLarge(t.octets) {
		return verdict{fail: &fault{codeFull, "file too large", "too_large"}}
	}
	if len(p.data) < t.block {
		t.last, t.end = true, p.block
	}
	return verdict{}
}
