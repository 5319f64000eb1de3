package userpath

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// control is one control message, see cmsg(3).
type control struct {
	level, kind int32
	data        []byte
}

func (c *control) is(level, kind int32) bool { return c.level == level && c.kind == kind }

// nextControl returns the first message of b and what follows it, false if there is none or it is cut.
func nextControl(b []byte) (c control, rest []byte, ok bool) {
	if len(b) < unix.SizeofCmsghdr {
		return control{}, nil, false
	}
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	size := int(h.Len)
	if size < unix.CmsgLen(0) || size > len(b) {
		return control{}, nil, false
	}
	c = control{level: h.Level, kind: h.Type, data: b[unix.CmsgLen(0):size]}
	return c, b[min(unix.CmsgSpace(size-unix.CmsgLen(0)), len(b)):], true
}
