package userpath

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/pion/dtls/v3/pkg/crypto/selfsign"
	"github.com/pion/srtp/v3"

	"edged.dev/edged/pkg/pinhole"
)

// dtlsPeer is a media peer: DTLS and all else come at one socket.
type dtlsPeer struct {
	*net.UDPConn
	media chan []byte
}

// ReadFrom returns DTLS, and leaves the rest in media.
func (p *dtlsPeer) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		n, from, err := p.UDPConn.ReadFrom(b)
		if err != nil || n > 0 && b[0] >= 20 && b[0] <= 63 {
			return n, from, err
		}
		select {
		case p.media <- bytes.Clone(b[:n]):
		default:
		}
	}
}

// udpAt binds a socket on loopback.
func udpAt(t *testing.T, host string) *net.UDPConn {
	t.Helper()
	pc, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(host), 0)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	return pc
}

func addrOf(pc *net.UDPConn) netip.AddrPort {
	a := pc.LocalAddr().(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// shake shakes hands with the edge at to, whose certificate must be the one named.
func (p *dtlsPeer) shake(t *testing.T, cert tls.Certificate, to netip.AddrPort, client bool, fingerprint string) (*dtls.Conn, error) {
	t.Helper()
	profiles := dtls.WithSRTPProtectionProfiles(dtls.SRTP_AES128_CM_HMAC_SHA1_80)
	peer, own := net.UDPAddrFromAddrPort(to), dtls.WithCertificates(cert)
	var conn *dtls.Conn
	var err error
	if client {
		conn, err = dtls.ClientWithOptions(p, peer, own, profiles, dtls.WithInsecureSkipVerify(true))
	} else {
		conn, err = dtls.ServerWithOptions(p, peer, own, profiles, dtls.WithInsecureSkipVerify(true), dtls.WithClientAuth(dtls.RequireAnyClientCert))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	state, _ := conn.ConnectionState()
	sum := sha256.Sum256(state.PeerCertificates[0])
	if got := "sha-256 " + strings.ToUpper(hex.EncodeToString(sum[:])); got != strings.ReplaceAll(fingerprint, ":", "") {
		t.Errorf("the edge shows %s, and signalling says %s", got, fingerprint)
	}
	return conn, nil
}

// contexts returns what protects the peer's packets, and what opens the edge's.
func contexts(t *testing.T, conn *dtls.Conn, client bool) (seal, open *srtp.Context) {
	t.Helper()
	state, _ := conn.ConnectionState()
	profile := srtp.ProtectionProfileAes128CmHmacSha1_80
	c := srtp.Config{Profile: profile}
	if err := c.ExtractSessionKeysFromDTLS(&state, client); err != nil {
		t.Fatal(err)
	}
	seal, err := srtp.CreateContext(c.Keys.LocalMasterKey, c.Keys.LocalMasterSalt, profile)
	if err != nil {
		t.Fatal(err)
	}
	open, err = srtp.CreateContext(c.Keys.RemoteMasterKey, c.Keys.RemoteMasterSalt, profile)
	if err != nil {
		t.Fatal(err)
	}
	return seal, open
}

// TestDTLS: a peer finds keys with the relay, in each role, and talks with a plain one; one with another certificate
// than signalling named does not.
func TestDTLS(t *testing.T) {
	for _, c := range []struct {
		name            string
		client, foreign bool
	}{{"peer begins", true, false}, {"edge begins", false, false}, {"another peer begins", true, true}} {
		t.Run(c.name, func(t *testing.T) {
			r := startRelay(t)
			l, err := r.Open(t.Context(), pinhole.Request{Kind: pinhole.RTP, Networks: [2]string{"inside", "outside"}})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			peer, plain := &dtlsPeer{udpAt(t, "127.0.5.7"), make(chan []byte, 64)}, udpAt(t, "127.0.6.7")
			cert, err := selfsign.GenerateSelfSigned()
			if err != nil {
				t.Fatal(err)
			}
			sum := sha256.Sum256(cert.Certificate[0])
			if c.foreign {
				sum[0]++
			}
			remote := pinhole.Remote{Addr: addrOf(peer.UDPConn), Source: addrOf(peer.UDPConn).Addr()}
			remote.DTLS = &pinhole.DTLS{Client: !c.client, Hash: "sha-256", Fingerprint: sum[:]}
			if err := l.Declare(pinhole.Near, remote); err != nil {
				t.Fatal(err)
			}
			if err := l.Declare(pinhole.Far, pinhole.Remote{Addr: addrOf(plain), Source: addrOf(plain).Addr()}); err != nil {
				t.Fatal(err)
			}
			conn, err := peer.shake(t, cert, l.Local(pinhole.Near).Addr, c.client, r.Fingerprint())
			if c.foreign {
				if err == nil {
					t.Error("a peer with another certificate was taken")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			go func() { // it leaves media in the peer's channel until the socket is closed
				for buf := make([]byte, 2048); ; {
					if _, err := conn.Read(buf); err != nil {
						return
					}
				}
			}()
			converse(t, l, peer, plain, conn, c.client)
		})
	}
}

// converse lets packets cross in both directions. The edge may have its keys a little later than the peer.
func converse(t *testing.T, l pinhole.Lease, peer *dtlsPeer, plain *net.UDPConn, conn *dtls.Conn, client bool) {
	t.Helper()
	seal, open := contexts(t, conn, client)
	near, far := net.UDPAddrFromAddrPort(l.Local(pinhole.Near).Addr), net.UDPAddrFromAddrPort(l.Local(pinhole.Far).Addr)
	buf := make([]byte, 2048)
	heard := [2]bool{}
	for n := 0; n < 2000 && heard != [2]bool{true, true}; n++ {
		b := speech(n)
		sealed, err := seal.EncryptRTP(nil, b, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := peer.WriteTo(sealed, near); err != nil {
			t.Fatal(err)
		}
		if _, err := plain.WriteTo(b, far); err != nil {
			t.Fatal(err)
		}
		if err := plain.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if got, err := plain.Read(buf); err == nil {
			if got != len(b) || !bytes.Equal(buf[12:20], b[12:20]) {
				t.Fatalf("the plain peer got %x", buf[:got])
			}
			heard[0] = true
		}
		select {
		case got := <-peer.media:
			if opened, err := open.DecryptRTP(nil, got, nil); err != nil || len(opened) != len(b) {
				t.Fatalf("the secure peer got %x: %v", got, err)
			}
			heard[1] = true
		default:
		}
	}
	if heard != [2]bool{true, true} {
		t.Errorf("heard by the plain peer and by the secure one: %v", heard)
	}
}

// mute says one packet, hears nothing, and says no more.
type mute struct {
	*net.UDPConn
	once sync.Once
	said chan struct{}
	quit <-chan struct{}
}

func (m *mute) WriteTo(b []byte, to net.Addr) (int, error) {
	m.once.Do(func() {
		_, _ = m.UDPConn.WriteTo(b, to) // the test waits for the answer
		close(m.said)
	})
	return len(b), nil
}

func (m *mute) ReadFrom([]byte) (int, net.Addr, error) {
	<-m.quit
	return 0, nil, net.ErrClosed
}

// TestDTLSStranger: who is at the peer's host, and begins first, keeps the peer from nothing, and confirms no source.
func TestDTLSStranger(t *testing.T) {
	r := startRelay(t)
	l, err := r.Open(t.Context(), pinhole.Request{Kind: pinhole.RTP, Networks: [2]string{"inside", "outside"}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	peer, plain := &dtlsPeer{udpAt(t, "127.0.5.7"), make(chan []byte, 64)}, udpAt(t, "127.0.6.7")
	ctx, cancel := context.WithCancel(t.Context())
	stranger := &mute{UDPConn: udpAt(t, "127.0.5.7"), said: make(chan struct{}), quit: ctx.Done()}
	cert, err := selfsign.GenerateSelfSigned()
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(cert.Certificate[0])
	remote := pinhole.Remote{Addr: addrOf(peer.UDPConn), Source: addrOf(peer.UDPConn).Addr(), DTLS: &pinhole.DTLS{Hash: "sha-256", Fingerprint: sum[:]}}
	if err := l.Declare(pinhole.Near, remote); err != nil {
		t.Fatal(err)
	}
	if err := l.Declare(pinhole.Far, pinhole.Remote{Addr: addrOf(plain), Source: addrOf(plain).Addr()}); err != nil {
		t.Fatal(err)
	}
	to := l.Local(pinhole.Near).Addr
	other, err := dtls.ClientWithOptions(stranger, net.UDPAddrFromAddrPort(to), dtls.WithInsecureSkipVerify(true))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- other.HandshakeContext(ctx) }()
	<-stranger.said
	answer := make([]byte, 2048) // the edge takes it for a peer
	if err := stranger.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := stranger.Read(answer); err != nil || n == 0 {
		t.Fatalf("the stranger is not answered: %v", err)
	}
	defer func() {
		cancel()
		<-ended
	}()
	if at := r.Pinholes()[0].Ends[pinhole.Near].Latched; at.IsValid() {
		t.Errorf("%v is confirmed", at)
	}
	conn, err := peer.shake(t, cert, to, true, r.Fingerprint())
	if err != nil {
		t.Fatal(err)
	}
	go drain(conn)
	converse(t, l, peer, plain, conn, true)
	if at := r.Pinholes()[0].Ends[pinhole.Near].Latched; at != addrOf(peer.UDPConn) {
		t.Errorf("%v is confirmed, not the peer", at)
	}
}
