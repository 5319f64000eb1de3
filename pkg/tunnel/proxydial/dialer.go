package proxydial

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// Dialer opens connections by way of proxies. It may be used concurrently.
type Dialer struct {
	// TCP opens a connection; nil: a [net.Dialer]. Set before first use.
	TCP func(ctx context.Context, network, address string) (net.Conn, error)
	// Getenv reads the environment; nil: [os.Getenv]. Set before first use.
	Getenv func(string) string

	cfg Config
	log *zap.Logger
	pac *script

	mu    sync.Mutex
	holds map[string]time.Time // proxies that refused a login, and until when nobody tries again
}

// New checks the section and allocates. Files are not read yet.
func New(cfg Config, log *zap.Logger) (*Dialer, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Hold == 0 {
		cfg.Hold = 5 * time.Minute
	}
	d := &Dialer{cfg: cfg, log: log, holds: map[string]time.Time{}}
	if cfg.PAC != "" {
		d.pac = newScript(cfg.PAC)
	}
	return d, nil
}

// Connected is an open way to the target.
type Connected struct {
	Conn net.Conn // belongs to the caller; a *net.TCPConn unless the proxy is https:// or spoke too early
	// RTT is what a turn to the target takes at least, seen from here: of TCP itself, or of the proxy's last answer.
	RTT time.Duration
	// Login is how the proxy was logged in at: none, basic, digest, ntlm, negotiate, password.
	Login string
}

// ErrHeld is returned while nobody may log in at a proxy, because it refused a login a short while ago.
var ErrHeld = errors.New("held: the proxy refused the login a short while ago")

// ErrRefused is returned when a proxy refused the login.
var ErrRefused = errors.New("the proxy refused the login")

// Dial opens a connection to target, HOST:PORT, by way of p. Names are resolved by the proxy if there is one.
func (d *Dialer) Dial(ctx context.Context, p Proxy, target string) (Connected, error) {
	switch p.Scheme {
	case Direct:
		conn, err := d.tcp(ctx, target)
		if err != nil {
			return Connected{}, err
		}
		return Connected{conn, tcpRTT(conn), "none"}, nil
	case SOCKS5:
		return d.dialSOCKS(ctx, p, target)
	default:
		return d.dialConnect(ctx, p, target)
	}
}

func (d *Dialer) tcp(ctx context.Context, address string) (net.Conn, error) {
	if d.TCP != nil {
		return d.TCP(ctx, "tcp", address)
	}
	var n net.Dialer
	return n.DialContext(ctx, "tcp", address)
}

// open connects to the proxy itself, by TLS if it is an https:// one.
func (d *Dialer) open(ctx context.Context, p Proxy) (net.Conn, error) {
	conn, err := d.tcp(ctx, p.Address)
	if err != nil || p.Scheme != HTTPS {
		return conn, err
	}
	host, _, _ := net.SplitHostPort(p.Address)
	cfg := &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12}
	if d.cfg.CAFile != "" {
		pem, err := os.ReadFile(d.cfg.CAFile)
		if err != nil {
			conn.Close()
			return nil, fmt.Errorf("authorities: %w", err)
		}
		if cfg.RootCAs = x509.NewCertPool(); !cfg.RootCAs.AppendCertsFromPEM(pem) {
			conn.Close()
			return nil, fmt.Errorf("authorities: no certificate in %s", d.cfg.CAFile)
		}
	}
	secured := tls.Client(conn, cfg)
	if err := secured.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, fmt.Errorf("TLS to the proxy: %w", err)
	}
	return secured, nil
}

// tcpRTT returns the round trip that the kernel measured; 0 if conn is not TCP.
func tcpRTT(conn net.Conn) (rtt time.Duration) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return 0
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			rtt = time.Duration(info.Rtt) * time.Microsecond
		}
	})
	return rtt
}

// guard makes the end of ctx end what blocks on conn. The function that it returns takes the guard away and returns
// ctx's error if it has ended: then conn is of no use.
func guard(ctx context.Context, conn net.Conn) func() error {
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	return func() error {
		if !stop() {
			return context.Cause(ctx)
		}
		return nil
	}
}

// credentials are those of the section, or else of the proxy's URL (which came from the environment).
func (d *Dialer) credentials(p Proxy) (user, password string, err error) {
	if d.cfg.User != "" {
		if d.cfg.PasswordFile == "" {
			return d.cfg.User, "", nil
		}
		password, err = readSecret(d.cfg.PasswordFile)
		return d.cfg.User, password, err
	}
	if p.user != nil {
		password, _ = p.user.Password()
		return p.user.Username(), password, nil
	}
	return "", "", nil
}

// readSecret returns the first line of a file of at most 4 KiB.
func readSecret(name string) (string, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return "", fmt.Errorf("password: %w", err)
	}
	if len(b) > 4096 {
		return "", fmt.Errorf("password: %s is larger than 4 KiB", name)
	}
	line, _, _ := strings.Cut(string(b), "\n")
	return strings.TrimSuffix(line, "\r"), nil
}

// held returns [ErrHeld] while nobody may log in at p.
func (d *Dialer) held(p Proxy) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	until, ok := d.holds[p.String()]
	if ok && time.Now().Before(until) {
		return fmt.Errorf("%w, until %s", ErrHeld, until.Format(time.TimeOnly))
	}
	delete(d.holds, p.String())
	return nil
}

// refused starts the hold at p.
func (d *Dialer) refused(p Proxy, login string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(d.holds, func(_ string, until time.Time) bool { return !now.Before(until) })
	if len(d.holds) < maxHolds {
		d.holds[p.String()] = now.Add(d.cfg.Hold)
	}
	d.log.Warn("proxy refused the login", zap.Stringer("proxy", p), zap.String("scheme", login), zap.Duration("hold", d.cfg.Hold))
	return fmt.Errorf("%w (%s)", ErrRefused, login)
}

// maxHolds bounds the proxies that are remembered for a refusal: a PAC script could name ever new ones.
const maxHolds = 256
