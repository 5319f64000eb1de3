// Package timelimited makes and reads the names and passwords of users who may allocate until a time that the name says
// (draft-uberti-behave-turn-rest-00 §2.2). TURN and MS-TURN have them alike; it knows no protocol.
//
//	secret ── Name(user, until) ──► "UNIXTIME:USER" ── Password(secret, name) ──► HMAC-SHA1
package timelimited

import (
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // what such passwords are made with
	"strconv"
	"strings"
	"time"
)

// Name returns "UNIXTIME:USER", or "UNIXTIME" for an empty user.
func Name(user string, until time.Time) string {
	name := strconv.FormatInt(until.Unix(), 10)
	if user != "" {
		name += ":" + user
	}
	return name
}

// Parse reads a name. A user that is not said is the time's text; ok is false for a name that is not time-limited.
func Parse(name string) (until time.Time, user string, ok bool) {
	stamp, user, _ := strings.Cut(name, ":")
	sec, err := strconv.ParseInt(stamp, 10, 64)
	if err != nil || sec <= 0 || sec > 1<<40 {
		return time.Time{}, "", false
	}
	if user == "" {
		user = stamp
	}
	return time.Unix(sec, 0), user, true
}

// Password returns the 20 octets of HMAC-SHA1(secret, name); TURN's users write them in base64.
func Password(secret, name string) []byte {
	mac := hmac.New(sha1.New, []byte(secret))
	mac.Write([]byte(name))
	return mac.Sum(nil)
}
