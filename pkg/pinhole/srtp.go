package pinhole

import (
	"bytes"
	"slices"
)

// SRTP is how RTP and RTCP are protected on their way to and from one peer (RFC 3711). It prints as the name of its
// suite, so that keys get into no log.
type SRTP struct {
	// Suite is one of [Suites].
	Suite string
	// In is the key that the peer's packets are protected with, Out the key for those that are sent to it: master
	// key and master salt, one after the other.
	In, Out []byte
	// InMKI stands in each packet of the peer (RFC 3711 §3.1), empty: nothing does.
	InMKI []byte
}

// Suite is a set of algorithms, by its name in the registry of RFC 4568.
type Suite struct {
	Name string
	// KeyLen and SaltLen are the lengths of the master key and salt, in octets.
	KeyLen, SaltLen int
}

// Suites returns what the relay can protect packets with: RFC 4568, 6188 and 7714.
func Suites() []Suite {
	return []Suite{
		{"AEAD_AES_256_GCM", 32, 12},
		{"AEAD_AES_128_GCM", 16, 12},
		{"AES_256_CM_HMAC_SHA1_80", 32, 14},
		{"AES_256_CM_HMAC_SHA1_32", 32, 14},
		{"AES_CM_128_HMAC_SHA1_80", 16, 14},
		{"AES_CM_128_HMAC_SHA1_32", 16, 14},
	}
}

// SuiteOf finds a suite by its name.
func SuiteOf(name string) (Suite, bool) {
	all := Suites()
	i := slices.IndexFunc(all, func(s Suite) bool { return s.Name == name })
	if i < 0 {
		return Suite{}, false
	}
	return all[i], true
}

// Equal tells whether both say the same; both may be nil.
func (s *SRTP) Equal(o *SRTP) bool {
	if s == nil || o == nil {
		return s == o
	}
	return s.Suite == o.Suite && bytes.Equal(s.In, o.In) && bytes.Equal(s.Out, o.Out) && bytes.Equal(s.InMKI, o.InMKI)
}

// String returns the name of the suite.
func (s *SRTP) String() string {
	if s == nil {
		return "none"
	}
	return s.Suite
}

// GoString returns what String does.
func (s *SRTP) GoString() string { return s.String() }

// MarshalText returns what String does.
func (s *SRTP) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
