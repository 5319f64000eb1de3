package media

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/pion/logging"
	"github.com/pion/transport/v5/deadline"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/pinhole"
)

// Keys that a peer and the edge agree on at the media ports themselves (DTLS-SRTP, RFC 5764): packets that begin with
// 20-63 are DTLS (RFC 7983). Each socket of a lease has an association of its own, which ends with the lease or when
// signalling names another peer.
//
//	Flow.Convert ── DTLS ──► association.in ──► handshake ──► keys ──► guard
//	peer ◄───────────────── the lease's socket ◄───┘

const (
	handshakeTime = 30 * time.Second
	// maxAttempts bounds the handshakes of one association: a peer whose first one failed tries again.
	maxAttempts = 4
	// maxWaiting bounds the packets that wait for the handshake: a flight has some five.
	maxWaiting = 32
)

var errFingerprint = errors.New("the peer's certificate is not the one that signalling named")

// newIdentity returns a certificate that is good for its fingerprint alone.
func newIdentity() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("key: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{SerialNumber: big.NewInt(now.UnixNano()), NotBefore: now.AddDate(0, 0, -1), NotAfter: now.AddDate(10, 0, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// Fingerprint returns that of the relay's certificate, as a=fingerprint has it (RFC 8122 §5).
func (r *Relay) Fingerprint() string {
	h := crypto.SHA256.New()
	h.Write(r.identity.Certificate[0])
	return "sha-256 " + strings.ToUpper(strings.ReplaceAll(fmt.Sprintf("% x", h.Sum(nil)), " ", ":"))
}

// association is one handshake and what follows it. It is the net.PacketConn that the handshake speaks on.
type association struct {
	relay *Relay
	leg   *leg
	want  pinhole.DTLS
	at    netip.AddrPort // the peer as declared
	// fd is a descriptor of its own for the lease's socket, which may be closed before.
	fd    int
	in    chan []byte     // of maxWaiting: see there
	ctx   context.Context //nolint:containedctx // the association's own life, no request's
	stop  context.CancelFunc
	until *deadline.Deadline

	mu sync.Mutex
	to netip.AddrPort
	// abandon ends the handshake under way.
	abandon context.CancelFunc
}

// associateLocked begins an association at a leg.
func (l *lease) associateLocked(g *leg, want pinhole.DTLS, at netip.AddrPort) (*association, error) {
	fd, err := unix.FcntlInt(uintptr(l.ends[g.side].socks[g.socket].FD), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, resourceError(os.NewSyscallError("fcntl", err))
	}
	a := &association{relay: l.relay, leg: g, want: want, at: at, fd: fd, in: make(chan []byte, maxWaiting), until: deadline.New()}
	if !at.IsValid() {
		a.to = g.latched // where ICE says that the peer is
	}
	a.ctx, a.stop = context.WithCancel(context.Background())
	l.relay.work.Go(a.run)
	return a, nil
}

// fits tells whether the association is with this peer.
func (a *association) fits(want pinhole.DTLS, at netip.AddrPort) bool {
	return a != nil && a.at == at && a.want.Client == want.Client && a.want.Hash == want.Hash && bytes.Equal(a.want.Fingerprint, want.Fingerprint)
}

// aim says where the peer is.
func (a *association) aim(at netip.AddrPort) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.to = at
}

// receive takes a packet that came from the peer, or from who may be the peer: of those one is listened to at a time, and where
// the peer was declared to be goes before all others.
func (a *association) receive(from netip.AddrPort, b []byte) {
	a.mu.Lock()
	mine := !a.to.IsValid() || a.to == from || a.at == from
	if mine && a.to.IsValid() && a.to != from && a.abandon != nil {
		a.abandon()
	}
	if mine {
		a.to = from
	}
	a.mu.Unlock()
	if !mine {
		a.leg.Drop(UnknownSource, 1)
		return
	}
	select {
	case a.in <- bytes.Clone(b):
	default: // DTLS repeats what is lost
	}
}

// run shakes hands, and serves the association until it is stopped.
func (a *association) run() {
	defer unix.Close(a.fd)
	defer a.stop()
	for range maxAttempts {
		first, ok := a.first()
		if !ok {
			return
		}
		err := a.serve(first)
		if a.ctx.Err() != nil {
			return
		}
		a.relay.log.Info("DTLS of a media peer has ended", zap.String("label", a.leg.lease.req.Label), zap.Stringer("peer", a.target()), zap.Error(err))
		if a.want.Client {
			return
		}
		a.yield()
	}
}

// yield lets another source begin, unless the peer is confirmed.
func (a *association) yield() {
	a.relay.mu.Lock()
	latched := a.leg.latched
	a.relay.mu.Unlock()
	a.aim(latched)
}

// first waits for the packet with which a client begins.
func (a *association) first() (packet []byte, ok bool) {
	if a.want.Client {
		return nil, true
	}
	select {
	case packet = <-a.in:
		return packet, true
	case <-a.ctx.Done():
		return nil, false
	}
}

// serve shakes hands once, gives the keys to the guard, and reads until the peer or the lease ends it.
func (a *association) serve(first []byte) error {
	if first != nil {
		select {
		case a.in <- first:
		default:
		}
	}
	conn, err := a.dtls()
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(a.ctx, handshakeTime)
	defer cancel()
	a.mu.Lock()
	a.abandon = cancel
	a.mu.Unlock()
	if err := conn.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	keys, err := a.keys(conn)
	if err != nil {
		return err
	}
	if err := a.tell(keys); err != nil {
		return err
	}
	unwatch := context.AfterFunc(a.ctx, func() { _ = conn.Close() })
	defer unwatch()
	buf := make([]byte, 2048)
	for {
		if _, err := conn.Read(buf); err != nil {
			return fmt.Errorf("read: %w", err)
		}
	}
}

func (a *association) dtls() (*dtls.Conn, error) {
	profiles := dtls.WithSRTPProtectionProfiles(dtls.SRTP_AEAD_AES_256_GCM, dtls.SRTP_AEAD_AES_128_GCM, dtls.SRTP_AES128_CM_HMAC_SHA1_80)
	certificate, check := dtls.WithCertificates(a.relay.identity), dtls.WithVerifyPeerCertificate(a.verify)
	quiet := logging.NewDefaultLoggerFactory() // what a peer sends is no fault of ours
	quiet.DefaultLogLevel = logging.LogLevelDisabled
	peer := net.UDPAddrFromAddrPort(a.target())
	if a.want.Client {
		// The certificate is judged by its fingerprint, see verify.
		return dtls.ClientWithOptions(a, peer, certificate, check, profiles, dtls.WithLoggerFactory(quiet), dtls.WithInsecureSkipVerify(true))
	}
	return dtls.ServerWithOptions(a, peer, certificate, check, profiles, dtls.WithLoggerFactory(quiet), dtls.WithInsecureSkipVerify(true), dtls.WithClientAuth(dtls.RequireAnyClientCert))
}

// verify compares the peer's certificate with its fingerprint.
func (a *association) verify(certificates [][]byte, _ [][]*x509.Certificate) error {
	hash, ok := pinhole.FingerprintHash(a.want.Hash)
	if !ok || len(certificates) == 0 {
		return errFingerprint
	}
	h := hash.New()
	h.Write(certificates[0])
	if !bytes.Equal(h.Sum(nil), a.want.Fingerprint) {
		return errFingerprint
	}
	return nil
}

// keys derives the keys of SRTP (RFC 5764 §4.2): client's key, server's key, client's salt, server's salt.
func (a *association) keys(conn *dtls.Conn) (*pinhole.SRTP, error) {
	profile, ok := conn.SelectedSRTPProtectionProfile()
	name := map[dtls.SRTPProtectionProfile]string{
		dtls.SRTP_AEAD_AES_256_GCM: "AEAD_AES_256_GCM", dtls.SRTP_AEAD_AES_128_GCM: "AEAD_AES_128_GCM",
		dtls.SRTP_AES128_CM_HMAC_SHA1_80: "AES_CM_128_HMAC_SHA1_80",
	}[profile]
	suite, known := pinhole.SuiteOf(name)
	state, alive := conn.ConnectionState()
	if !ok || !known || !alive {
		return nil, fmt.Errorf("profile %v: %w", profile, errSuite)
	}
	k, s := suite.KeyLen, suite.SaltLen
	m, err := state.ExportKeyingMaterial("EXTRACTOR-dtls_srtp", nil, 2*(k+s))
	if err != nil {
		return nil, fmt.Errorf("keys: %w", err)
	}
	client := append(bytes.Clone(m[:k]), m[2*k:2*k+s]...)
	server := append(bytes.Clone(m[k:2*k]), m[2*k+s:]...)
	if a.want.Client {
		return &pinhole.SRTP{Suite: name, In: server, Out: client}, nil
	}
	return &pinhole.SRTP{Suite: name, In: client, Out: server}, nil
}

// tell gives the keys to the guard whose association this is.
func (a *association) tell(keys *pinhole.SRTP) error {
	a.relay.mu.Lock()
	defer a.relay.mu.Unlock()
	g := a.leg.guardLocked()
	if a.leg.lease.closed || g == nil || g.association != a {
		return pinhole.ErrClosed
	}
	if _, err := g.rekey(keys); err != nil {
		return err
	}
	a.leg.metLocked(a.target())
	return nil
}

// metLocked confirms the source with which a handshake has succeeded.
func (g *leg) metLocked(at netip.AddrPort) {
	l := g.lease
	if g.latched == at || l.remote[g.side].ICE != nil || !l.relay.cfg.Latch {
		return
	}
	g.latched = at
	if err := l.publishLocked(); err != nil {
		l.relay.log.Error("media path refused a flow", zap.String("label", l.req.Label), zap.Error(err))
	}
}

// target returns where the peer is: where it sends from, before that where it was declared.
func (a *association) target() netip.AddrPort {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.to.IsValid() {
		return a.to
	}
	return a.at
}

// ReadFrom implements [net.PacketConn].
func (a *association) ReadFrom(p []byte) (int, net.Addr, error) {
	select {
	case b := <-a.in:
		return copy(p, b), net.UDPAddrFromAddrPort(a.target()), nil
	case <-a.ctx.Done():
		return 0, nil, net.ErrClosed
	case <-a.until.Done():
		return 0, nil, os.ErrDeadlineExceeded
	}
}

// WriteTo implements [net.PacketConn]. What the kernel does not take is lost, as on any way.
func (a *association) WriteTo(p []byte, _ net.Addr) (int, error) {
	to := a.target()
	if !to.IsValid() {
		return len(p), nil // no check has come yet
	}
	var sa unix.Sockaddr = &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
	if to.Addr().Is4() {
		sa = &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	_ = unix.Sendto(a.fd, p, unix.MSG_DONTWAIT, sa)
	return len(p), nil
}

// Close implements [net.PacketConn]: the handshake is over, the association may go on.
func (a *association) Close() error { return nil }

// LocalAddr implements [net.PacketConn].
func (a *association) LocalAddr() net.Addr {
	return net.UDPAddrFromAddrPort(a.leg.lease.ends[a.leg.side].socks[a.leg.socket].Local)
}

// SetDeadline implements [net.PacketConn]; writing never blocks.
func (a *association) SetDeadline(t time.Time) error { return a.SetReadDeadline(t) }

// SetReadDeadline implements [net.PacketConn].
func (a *association) SetReadDeadline(t time.Time) error {
	a.until.Set(t)
	return nil
}

// SetWriteDeadline implements [net.PacketConn].
func (a *association) SetWriteDeadline(time.Time) error { return nil }
