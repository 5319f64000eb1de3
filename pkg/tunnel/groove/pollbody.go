package groove

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// pollVersion begins the body of every request and response of Polling ([MS-GRVHENC] §2.2.4).
const pollVersion = "1.2"

// maxFieldLen bounds a field of such a body, but for its data.
const maxFieldLen = 512

var errPollBody = errors.New("malformed body of Polling")

// pollBody is the body of a request or a response of Polling: fields that end with NUL, then data. In a response the
// pace stands before the data; its place there and the form of its numbers (milliseconds) are edged's own, since no
// document that could be had tells them.
type pollBody struct {
	relay, guid string
	seq         uint32
	pace        *pace // of a response
	data        []byte
}

// pace is how often a client asks: at first after min; after so many repetitions without data the interval is doubled,
// up to max.
type pace struct {
	min, max    time.Duration
	repetitions int
}

// Bounds of what a server may ask of a client.
const minPace, maxPace, maxRepetitions = time.Millisecond, time.Minute, 1000

func (p pace) valid() bool {
	return p.min >= minPace && p.min <= p.max && p.max <= maxPace && p.repetitions > 0 && p.repetitions <= maxRepetitions
}

// parsePollBody reads the body of a request, or of a response, and checks its checksum. Its data stay in b.
func parsePollBody(b []byte, isResponse bool) (p pollBody, err error) {
	if len(b) > maxBody {
		return p, errPollBody
	}
	fields := 5
	if isResponse {
		fields = 8
	}
	text := make([]string, fields)
	for i := range text {
		field, rest, ok := bytes.Cut(b, []byte{0})
		if !ok || len(field) > maxFieldLen {
			return p, errPollBody
		}
		text[i], b = string(field), rest
	}
	p.relay, p.guid, p.data = text[1], text[2], b
	seq, err := strconv.ParseUint(text[3], 10, 32)
	sum, err2 := strconv.ParseInt(text[4], 10, 32)
	if text[0] != pollVersion || !isGUID(p.guid) || !isName(hostOf(p.relay)) || err != nil || err2 != nil || int32(sum) != checksum(b) {
		return p, errPollBody
	}
	p.seq = uint32(seq)
	if isResponse {
		p.pace, err = parsePace(text[5:])
	}
	return p, err
}

func parsePace(text []string) (*pace, error) {
	var n [3]uint64
	for i := range n {
		var err error
		if n[i], err = strconv.ParseUint(text[i], 10, 31); err != nil {
			return nil, errPollBody
		}
	}
	p := &pace{time.Duration(n[0]) * time.Millisecond, time.Duration(n[1]) * time.Millisecond, int(n[2])}
	if !p.valid() {
		return nil, errPollBody
	}
	return p, nil
}

// bytes returns the body.
func (p pollBody) bytes() []byte {
	b := fmt.Appendf(nil, "%s\x00%s\x00%s\x00%d\x00%d\x00", pollVersion, p.relay, p.guid, p.seq, checksum(p.data))
	if p.pace != nil {
		b = fmt.Appendf(b, "%d\x00%d\x00%d\x00", p.pace.min.Milliseconds(), p.pace.max.Milliseconds(), p.pace.repetitions)
	}
	return append(b, p.data...)
}

// room is how much data fits beside the fields, whatever their values are.
func (p pollBody) room() int {
	widest := pollBody{relay: p.relay, guid: p.guid, seq: math.MaxUint32, pace: &pace{maxPace, maxPace, maxRepetitions}}
	return maxBody - len(widest.bytes()) - len(strconv.Itoa(math.MinInt32))
}

// checksum is that of [MS-GRVHENC] §2.2.4: signed octets, nothing for the first, and for each other one more than it
// times one more than its index. How wide it is is not documented; here 32 bits, which wrap.
func checksum(b []byte) (sum int32) {
	for i, c := range b {
		if i > 0 {
			sum += (int32(int8(c)) + 1) * int32(i+1)
		}
	}
	return sum
}

// sameRelay tells whether what a body calls the relay is the name in the URI.
func sameRelay(url, name string) bool { return strings.EqualFold(hostOf(url), name) }
