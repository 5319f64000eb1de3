package mux

import (
	"errors"
	"fmt"
)

// Code says why a stream was reset or a session ended. It travels as a 32-bit
// number; numbers without a name here are passed on as they are.
type Code uint32

// The codes. Those up to CodeCrossedConnections have the names, not the
// numbers, of Groove's SSTP reasons.
const (
	CodeClosed               Code = iota // in order, nothing is wrong
	CodeTryLater                         // a limit is reached for now
	CodeWrongDevice                      // not the device that was asked for
	CodeNewVersionRequired               // the peer speaks a version that is not spoken here
	CodeQuotaWouldBeExceeded             // a quota has no room for it
	CodeLockedOut                        // the policy forbids it
	CodeHostNotReachable                 // the target cannot be reached
	CodeEmptySession                     // the session is not known, or what it lost is not kept any more
	CodeCrossedConnections               // a HELLO of an epoch that is over
	CodeProtocol                         // the peer broke the framing
	CodeFlowControl                      // the peer sent more than it had credit for, or granted too much
	CodeCanceled                         // whoever asked does not want it any more
	CodeNoSuchService                    // the device has no service of this name
	CodeOffline                          // the device is not attached
	CodeInternal                         // a fault on the side that says so
	CodeLingered                         // no carrier came back in time
)

func (c Code) String() string {
	names := [...]string{
		"closed", "try_later", "wrong_device", "new_version_required", "quota_would_be_exceeded", "locked_out",
		"host_not_reachable", "empty_session", "crossed_connections", "protocol", "flow_control", "canceled",
		"no_such_service", "offline", "internal", "lingered",
	}
	if int(c) < len(names) {
		return names[c]
	}
	return fmt.Sprintf("code_%d", uint32(c))
}

// ResetError is what a stream's methods return after a RESET by either end,
// and what Open returns if the peer refused.
type ResetError struct{ Code Code }

func (e *ResetError) Error() string { return "stream reset: " + e.Code.String() }

// SessionError is why a session ended, and what the methods of its streams
// return from then on.
type SessionError struct {
	Code   Code
	Remote bool  // the peer ended it
	Cause  error // may be nil
}

func (e *SessionError) Error() string {
	who := "here"
	if e.Remote {
		who = "by the peer"
	}
	if e.Cause != nil {
		return fmt.Sprintf("session ended %s: %s: %v", who, e.Code, e.Cause)
	}
	return fmt.Sprintf("session ended %s: %s", who, e.Code)
}

func (e *SessionError) Unwrap() error { return e.Cause }

// ErrGoAway is what Open returns after the peer's GOAWAY.
var ErrGoAway = errors.New("the peer takes no new streams")

// ErrDatagramSize is returned for a datagram longer than MaxDatagram.
var ErrDatagramSize = errors.New("datagram too long")

// ErrNoDatagrams is returned for datagrams on a stream opened without them.
var ErrNoDatagrams = errors.New("the stream has no datagrams")

var errDead = errors.New("nothing arrives though something is outstanding")

// fault makes the error that ends a session because of what the peer sent.
func fault(code Code, format string, args ...any) *SessionError {
	return &SessionError{Code: code, Cause: fmt.Errorf(format, args...)}
}
