// Package msnftp relays the data connection of a Messenger file transfer: MSNFTP, in the dress that SIP clients give it
// (MSN_SECURE_FTP, which Microsoft never specified). It does not read invitations and opens no socket: an ALG asks for
// the pinhole, and the relay brings the connections to a [Transfer]'s Admit and Serve.
//
//	file's receiver (R)      edge      file's sender (S)     R speaks first, whichever of them dialled
//	VER MSN_SECURE_FTP   ──►                                 R's cookie is checked before S hears of it:
//	   ◄── VER MSN_SECURE_FTP                                the edge says VER in S's stead
//	USR <uri> <cookie>   ──►     ──► VER, USR
//	   ◄──────────────────────────── FIL <size>
//	TFR   ──────────────────────────►
//	   ◄──────────────────────────── blocks: 00 <length, low octet first> <data>
//	BYE 16777989  ──────────────────►
//	   ◄──────────────────────────── MAC <base64>\0
//
// After TFR the connections are joined unread, or read block by block where the content is to be checked.
package msnftp

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"edged.dev/edged/pkg/pinhole"
)

// Times that a Transfer has if it names none.
const (
	// DefaultIdle is how long neither side may say anything.
	DefaultIdle = time.Minute
	// DefaultHandshake is how long everything up to TFR may take.
	DefaultHandshake = 30 * time.Second
)

// Bye codes (no specification; seen in clients): how the file's receiver ends a transfer.
const (
	byeDone  = "16777989"
	byeAbort = "2164261682"
)

// Joiner moves the rest of two streams that nobody reads.
type Joiner interface {
	// Join owns the connections. It writes what was read already to the other side, then all that comes, with half-closes,
	// and returns when both have ended, or after an error, which is ErrLimit and ErrIdle for o's limits.
	Join(ctx context.Context, conns [2]net.Conn, o JoinOptions) error
}

// JoinOptions say what a join may do; index Near or Far is what comes from that side.
type JoinOptions struct {
	// Prefix was read from the side already.
	Prefix [2][]byte
	// Limit is how many octets may come from the side, prefix included.
	Limit [2]int64
	// Idle is how long neither side may say anything.
	Idle time.Duration
	// Started is called before Join blocks, with a function that tells how many octets have come from a side up to
	// now, prefix included. It may be called at any time, also after Join.
	Started func(octets func(from pinhole.Side) uint64)
}

// Check looks at a file while it passes. Its methods are called one at a time; its context ends with the transfer.
type Check interface {
	// Write takes the file's octets as they are on the wire, encrypted. An error says that the file must not
	// pass. With the first 512 octets it has judged what kind of file it is.
	Write(b []byte) (int, error)
	// Verdict judges the whole file; it may take its time.
	Verdict() error
	// MAC judges the sender's MAC, in base64: what the receiver will decrypt is what was looked at.
	MAC(sum string) error
}

// What ends a transfer, beside what connections say.
var (
	// ErrVersion: neither client speaks a version that is allowed.
	ErrVersion = errors.New("version not allowed")
	// ErrCookie: the caller does not know the AuthCookie of the invitation.
	ErrCookie = errors.New("wrong cookie")
	// ErrProtocol: something else was said than the protocol has there.
	ErrProtocol = errors.New("not the protocol")
	// ErrTooLarge: the file is larger than allowed.
	ErrTooLarge = errors.New("file too large")
	// ErrLimit: more came than the file can be.
	ErrLimit = errors.New("more octets than announced")
	// ErrIdle: nobody said anything for too long.
	ErrIdle = errors.New("idle for too long")
	// ErrSlow: the handshake took too long.
	ErrSlow = errors.New("handshake took too long")
	// ErrCancelled: one of the clients said that it wants no more of it.
	ErrCancelled = errors.New("cancelled")
	// ErrCut: the connection ended before the file did.
	ErrCut = errors.New("ended before the file did")
	// ErrDenied: the file's content is not allowed. The Check's own error is wrapped beside it.
	ErrDenied = errors.New("content denied")
)

// Transfer is what an ALG knows of one file transfer. It must not be changed any more once its pinhole is open.
type Transfer struct {
	// Receiver is the side of the pinhole at which the receiver of the file is; it may be the one that dials or not.
	Receiver pinhole.Side
	// Cookie is the AuthCookie of the invitation. Nobody passes without it.
	Cookie string
	// User, if not empty, replaces the URI with which the receiver introduces itself to the sender.
	User string
	// Plain lets MSNFTP without MSN_SECURE_FTP pass too. A Check gets its blocks as they are.
	Plain bool
	// MaxSize is the size in octets that a file may have, 0 for any.
	MaxSize int64
	// Idle and Handshake bound the times of silence and up to TFR; 0 is the default.
	Idle, Handshake time.Duration
	// Joiner moves the file where there is no Check; nil: it is copied here.
	Joiner Joiner
	// Check, if not nil, is asked before TFR passes for what is to look at a file of so many octets. ctx ends
	// with the transfer.
	Check func(ctx context.Context, size int64) (Check, error)
	// Refused, if not nil, hears of each caller that was not admitted. The transfer still waits.
	Refused func(host netip.Addr, err error)
	// Ended, if not nil, hears once what became of the transfer. Connections are closed when it is called.
	Ended func(Outcome)
}

// Outcome is what became of a transfer.
type Outcome struct {
	// Err is nil if the file was passed whole; else it wraps one of this package's errors or a connection's.
	Err error
	// Size is what the sender said, -1 if it did not come to that.
	Size int64
	// Octets came from each side.
	Octets [2]uint64
	// Began is when the pair of connections was there.
	Began time.Time
	// Took is how long it lasted.
	Took time.Duration
}

// Reason names what ended a transfer, as the label of a metric; "completed" for nil.
func Reason(err error) string {
	for _, r := range []struct {
		is   error
		name string
	}{
		{ErrVersion, "version"},
		{ErrCookie, "cookie"},
		{ErrProtocol, "protocol"},
		{ErrTooLarge, "too_large"},
		{ErrLimit, "too_long"},
		{ErrIdle, "idle"},
		{ErrSlow, "slow"},
		{ErrDenied, "denied"},
		{ErrCancelled, "cancelled"},
		{ErrCut, "cut"},
		{context.Canceled, "closed"},
	} {
		if errors.Is(err, r.is) {
			return r.name
		}
	}
	if err != nil {
		return "connection"
	}
	return "completed"
}
