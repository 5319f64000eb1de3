package userpath

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/pion/srtp/v3"
	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/pinhole"
)

// TestSRTP: packets whose protection ends at the edge cross real sockets, in bursts too, and what is not protected
// does not.
func TestSRTP(t *testing.T) {
	r := startRelay(t)
	l, a, b := openCall(t, r)
	const suite = "AES_CM_128_HMAC_SHA1_80"
	keys := &pinhole.SRTP{Suite: suite, In: bytes.Repeat([]byte{1}, 30), Out: bytes.Repeat([]byte{2}, 30)}
	near := socketAddr(t, a)
	if err := l.Declare(pinhole.Near, pinhole.Remote{Addr: near, Source: near.Addr(), SRTP: keys}); err != nil {
		t.Fatal(err)
	}
	to := l.Local(pinhole.Far).Addr
	if err := unix.Connect(b, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}); err != nil {
		t.Fatal(err)
	}
	seal, err := srtp.CreateContext(keys.In[:16], keys.In[16:], srtp.ProtectionProfileAes128CmHmacSha1_80)
	if err != nil {
		t.Fatal(err)
	}
	open, err := srtp.CreateContext(keys.Out[:16], keys.Out[16:], srtp.ProtectionProfileAes128CmHmacSha1_80)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2048)
	for round := range 100 {
		const burst = 10
		for n := range burst {
			plain := speech(round*burst + n)
			sealed, err := seal.EncryptRTP(nil, plain, nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, packet := range [][]byte{plain, sealed} { // the first is to be dropped
				if _, err := unix.Write(a, packet); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := unix.Write(b, plain); err != nil {
				t.Fatal(err)
			}
		}
		for n := range burst {
			want := speech(round*burst + n)
			if got, err := readAgain(b, buf); err != nil || !bytes.Equal(buf[:got], want) {
				t.Fatalf("packet %d: the plain peer got %x: %v", round*burst+n, buf[:max(got, 0)], err)
			}
			got, err := readAgain(a, buf)
			if err != nil {
				t.Fatal(err)
			}
			if opened, err := open.DecryptRTP(nil, buf[:got], nil); err != nil || !bytes.Equal(opened, want) {
				t.Fatalf("packet %d: the secure peer got %x: %v", round*burst+n, buf[:got], err)
			}
		}
	}
}

// speech returns RTP packet n of a stream.
func speech(n int) []byte {
	b := make([]byte, 172)
	b[0] = 0x80
	binary.BigEndian.PutUint16(b[2:], uint16(n))
	binary.BigEndian.PutUint32(b[20:], uint32(n))
	return b
}
