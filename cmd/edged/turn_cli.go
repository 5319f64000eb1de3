package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/pion/logging"
	pion "github.com/pion/turn/v5"
	"github.com/spf13/cobra"

	"edged.dev/edged/pkg/turn"
)

func newTURNCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "turn", Short: "Make credentials for the TURN server, and test it"}
	cmd.AddCommand(newTURNCredentialCmd(), newTURNTestCmd())
	return cmd
}

// turnLogin is what a client logs in with, in the names of WebRTC's RTCIceServer.
type turnLogin struct {
	URLs       []string `json:"urls"`
	Username   string   `json:"username"`
	Credential string   `json:"credential"`
	Expires    string   `json:"expires,omitempty"`
}

func newTURNCredentialCmd() *cobra.Command {
	var user string
	var ttl time.Duration
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "credential",
		Short: "Print a time-limited name and password, made with the first secret of turn.secret_file",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(configFile(cmd))
			if err != nil {
				return err
			}
			login, err := newTURNLogin(cfg, user, time.Now().Add(ttl))
			if err != nil {
				return err
			}
			if asJSON {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				return enc.Encode(login)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "username    %s\ncredential  %s\nexpires     %s\n", login.Username, login.Credential, login.Expires)
			return nil
		},
	}
	cmd.Flags().StringVar(&user, "user", "", "`NAME` of the user, for quotas and logs")
	cmd.Flags().DurationVar(&ttl, "ttl", 24*time.Hour, "how long the user may allocate")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print what RTCPeerConnection wants as one of its iceServers")
	return cmd
}

func newTURNLogin(cfg *config, user string, until time.Time) (turnLogin, error) {
	files, err := readTURNFiles(cfg.TURN, cfg.dir)
	if err != nil {
		return turnLogin{}, err
	}
	if len(files.secrets) == 0 {
		return turnLogin{}, errors.New("turn.secret_file names no secret")
	}
	login := turnLogin{URLs: []string{}, Expires: until.UTC().Format(time.RFC3339)}
	login.Username, login.Credential = turn.Credential(files.secrets[0], user, until)
	for _, l := range cfg.TURN.Listen {
		n := cfg.networks()[l.Network]
		for _, a := range n.Addresses {
			login.URLs = append(login.URLs, turnURL(l.Proto, netip.AddrPortFrom(n.Public(a), l.Port)))
		}
	}
	return login, nil
}

// turnURL writes a server as RFC 7065 has it.
func turnURL(proto string, at netip.AddrPort) string {
	switch proto {
	case "tls":
		return "turns:" + at.String() + "?transport=tcp"
	case "dtls":
		return "turns:" + at.String() + "?transport=udp"
	}
	return "turn:" + at.String() + "?transport=" + proto
}

// turnProbe is one server to be tested, and the login.
type turnProbe struct {
	proto      string
	at         netip.AddrPort
	user, pass string
	realm      string
	roots      *x509.CertPool // nil: the system's
	name       string         // in the certificate; "": any of the server's
	wait       time.Duration
}

func newTURNTestCmd() *cobra.Command {
	var user, password, name string
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "test [udp|tcp|tls|dtls://ADDRESS:PORT]",
		Short: "Allocate at a TURN server and have packets relayed to oneself; without a server at each listener of the configuration",
		Long: "Test logs in twice, permits one allocation to reach the other, and sends packets through both: first in Send indications,\n" +
			"then by a channel. It prints what works, and what is wrong and why, and exits with 1 if anything is.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := loadConfig(configFile(cmd))
			if err != nil {
				return err
			}
			login := turnProbe{user: user, pass: password, realm: cfg.TURN.Realm, name: name, wait: wait}
			if err := login.fill(cfg); err != nil {
				return err
			}
			probes, err := turnProbes(cfg, login, args)
			if err != nil {
				return err
			}
			failed := 0
			for _, p := range probes {
				if err := p.run(cmd.Context(), cmd.OutOrStdout()); err != nil {
					fmt.Fprintf(cmd.OutOrStdout(), "%s: FAILED: %v\n", turnURL(p.proto, p.at), err)
					failed++
				}
			}
			if failed > 0 {
				return fmt.Errorf("%d of %d servers failed", failed, len(probes))
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&user, "user", "", "`NAME` to log in with; without one a credential of turn.secret_file, or a user of the configuration")
	cmd.Flags().StringVar(&password, "password", "", "its `PASSWORD`")
	cmd.Flags().StringVar(&name, "tls-name", "", "`NAME` that the certificate must have")
	cmd.Flags().DurationVar(&wait, "wait", 5*time.Second, "how long to wait for each answer")
	return cmd
}

// fill finds a login and the authorities.
func (p *turnProbe) fill(cfg *config) error {
	certs, err := loadCertificates(cfg.TLS, cfg.dir)
	if err != nil {
		return err
	}
	p.roots = certs.roots
	if p.user != "" {
		return nil
	}
	if login, err := newTURNLogin(cfg, "test", time.Now().Add(10*time.Minute)); err == nil {
		p.user, p.pass = login.Username, login.Credential
		return nil
	}
	files, err := readTURNFiles(cfg.TURN, cfg.dir)
	if err != nil {
		return err
	}
	for name, password := range cfg.TURN.Users {
		if files.users == nil {
			files.users = map[string]string{}
		}
		files.users[name] = string(password)
	}
	for _, name := range slices.Sorted(maps.Keys(files.users)) {
		if !strings.HasPrefix(files.users[name], "md5:") {
			p.user, p.pass = name, files.users[name]
			return nil
		}
	}
	return errors.New("no user whose password is known: give --user and --password")
}

// turnProbes lists what is to be tested.
func turnProbes(cfg *config, login turnProbe, args []string) (out []turnProbe, err error) {
	if len(args) == 1 {
		var ok bool
		login.proto, args[0], ok = strings.Cut(args[0], "://")
		if login.at, err = netip.ParseAddrPort(args[0]); err != nil || !ok || !slices.Contains([]string{"udp", "tcp", "tls", "dtls"}, login.proto) {
			return nil, errors.New("the server is not written udp://ADDRESS:PORT, tcp://, tls:// or dtls://")
		}
		return []turnProbe{login}, nil
	}
	for _, l := range cfg.TURN.Listen {
		for _, a := range cfg.Networks[l.Network].Addresses {
			p := login
			p.proto, p.at = l.Proto, netip.AddrPortFrom(a, l.Port)
			out = append(out, p)
		}
	}
	if len(out) == 0 {
		return nil, errors.New("turn.listen is empty: the service is off")
	}
	return out, nil
}

// run tests one server.
func (p turnProbe) run(ctx context.Context, out io.Writer) error {
	var relays [2]net.PacketConn
	for i := range relays {
		c, err := p.client(ctx, out)
		if err != nil {
			return err
		}
		defer c.close()
		if i == 0 {
			mapped, err := c.SendBindingRequest()
			if err != nil {
				return p.explain("STUN Binding", err)
			}
			fmt.Fprintf(out, "%s: answers; it sees this host as %s\n", turnURL(p.proto, p.at), mapped)
		}
		if relays[i], err = c.Allocate(); err != nil {
			return p.explain("Allocate", err)
		}
		defer relays[i].Close()
	}
	fmt.Fprintf(out, "%s: relays at %s and %s\n", turnURL(p.proto, p.at), relays[0].LocalAddr(), relays[1].LocalAddr())
	began := time.Now()
	for i := range 6 {
		if err := p.exchange(relays, i); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "%s: ok, 12 packets through both, %v each\n", turnURL(p.proto, p.at), (time.Since(began) / 12).Round(10*time.Microsecond))
	return nil
}

// exchange sends a packet from one relay port to the other and back.
func (p turnProbe) exchange(relays [2]net.PacketConn, i int) error {
	buf := make([]byte, 2000)
	for from := range relays {
		a, b := relays[from], relays[1-from]
		if i == 0 { // the receiver must permit the sender before, or the first packet is lost
			if _, err := b.WriteTo([]byte("permission"), a.LocalAddr()); err != nil {
				return p.explain("CreatePermission", err)
			}
		}
		text := fmt.Sprintf("packet %d from %d: %s", i, from, strings.Repeat("x", i*100))
		if _, err := a.WriteTo([]byte(text), b.LocalAddr()); err != nil {
			return p.explain("CreatePermission", err)
		}
		b.SetReadDeadline(time.Now().Add(p.wait))
		for {
			n, _, err := b.ReadFrom(buf)
			if err != nil {
				return fmt.Errorf("a packet from %s to %s is lost (%w): are pinholes.udp open in the firewall, and is networks.*.advertise right?", a.LocalAddr(), b.LocalAddr(), err)
			}
			if string(buf[:n]) == text {
				break
			}
		}
	}
	return nil
}

// turnClient is a client and its connection.
type turnClient struct {
	*pion.Client
	conn net.PacketConn
}

func (c turnClient) close() {
	c.Close()
	c.conn.Close()
}

func (p turnProbe) client(ctx context.Context, out io.Writer) (*turnClient, error) {
	conn, err := p.dial(ctx, out)
	if err != nil {
		return nil, err
	}
	quiet := logging.NewDefaultLoggerFactory()
	quiet.DefaultLogLevel = logging.LogLevelDisabled
	c, err := pion.NewClient(&pion.ClientConfig{
		STUNServerAddr: p.at.String(), TURNServerAddr: p.at.String(), Conn: conn, Username: p.user, Password: p.pass, Realm: p.realm, LoggerFactory: quiet,
	})
	if err == nil {
		err = c.Listen()
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("client: %w", err)
	}
	return &turnClient{c, conn}, nil
}

func (p turnProbe) dial(ctx context.Context, out io.Writer) (net.PacketConn, error) {
	if p.proto == "udp" {
		network := "udp6"
		if p.at.Addr().Is4() {
			network = "udp4"
		}
		var lc net.ListenConfig
		return lc.ListenPacket(ctx, network, ":0")
	}
	if p.proto == "dtls" {
		return p.dialDTLS(ctx, out)
	}
	d := net.Dialer{Timeout: p.wait}
	c, err := d.DialContext(ctx, "tcp", p.at.String())
	if err != nil {
		return nil, fmt.Errorf("no connection (%w): does the daemon run, and is the port open in the firewall?", err)
	}
	if p.proto == "tls" {
		if c, err = p.secure(ctx, c, out); err != nil {
			return nil, err
		}
	}
	return pion.NewSTUNConn(c), nil
}

// secure begins TLS. A certificate that browsers would not take is said, and no reason to stop.
func (p turnProbe) secure(ctx context.Context, raw net.Conn, out io.Writer) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, p.wait)
	defer cancel()
	c := tls.Client(raw, &tls.Config{MinVersion: tls.VersionTLS12, ServerName: p.name, InsecureSkipVerify: true}) //nolint:gosec // verified below
	if err := c.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("TLS handshake: %w", err)
	}
	p.verify(c.ConnectionState().PeerCertificates, out)
	return c, nil
}

// verify says what is wrong with a certificate, and those that came with it.
func (p turnProbe) verify(chain []*x509.Certificate, out io.Writer) {
	v := x509.VerifyOptions{DNSName: p.name, Roots: p.roots, Intermediates: x509.NewCertPool()}
	for _, cert := range chain[1:] {
		v.Intermediates.AddCert(cert)
	}
	if _, err := chain[0].Verify(v); err != nil {
		fmt.Fprintf(out, "%s: warning: browsers may refuse the certificate: %v\n", turnURL(p.proto, p.at), err)
	}
}

// dialDTLS begins DTLS, as dial and secure do TLS.
func (p turnProbe) dialDTLS(ctx context.Context, out io.Writer) (net.PacketConn, error) {
	var lc net.ListenConfig
	pc, err := lc.ListenPacket(ctx, "udp", ":0")
	if err != nil {
		return nil, err
	}
	check := func(raw [][]byte, _ [][]*x509.Certificate) error {
		var chain []*x509.Certificate
		for _, der := range raw {
			cert, err := x509.ParseCertificate(der)
			if err != nil {
				return err
			}
			chain = append(chain, cert)
		}
		p.verify(chain, out)
		return nil
	}
	c, err := dtls.ClientWithOptions(pc, net.UDPAddrFromAddrPort(p.at), dtls.WithServerName(p.name), dtls.WithInsecureSkipVerify(true), dtls.WithVerifyPeerCertificate(check))
	if err != nil {
		pc.Close()
		return nil, fmt.Errorf("DTLS: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, p.wait)
	defer cancel()
	if err := c.HandshakeContext(ctx); err != nil {
		pc.Close()
		return nil, fmt.Errorf("DTLS handshake (%w): does the daemon run, and is the port open in the firewall?", err)
	}
	return dtlsConn{c}, nil
}

// dtlsConn is a connection as a socket that has one peer.
type dtlsConn struct{ *dtls.Conn }

// ReadFrom implements [net.PacketConn].
func (c dtlsConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, err := c.Read(b)
	return n, c.RemoteAddr(), err
}

// WriteTo implements [net.PacketConn].
func (c dtlsConn) WriteTo(b []byte, _ net.Addr) (int, error) { return c.Write(b) }

// explain says what an error of a step probably means.
func (p turnProbe) explain(step string, err error) error {
	text := err.Error()
	for _, known := range []struct{ has, means string }{
		{"error 400", "the server did not understand"},
		{"error 401", "the name, the password or the realm is wrong, or the credential is over"},
		{"error 403", "the policy of turn.peers refuses the peer"},
		{"error 437", "the server knows no such allocation: was it restarted?"},
		{"error 440", "the network of the relay ports has no address of this family"},
		{"error 486", "the user has as many allocations as turn.quota.per_user allows"},
		{"error 508", "no relay port is free, or quota.allocations are made, or the daemon drains"},
		{"all retransmissions failed", "no answer: does the daemon run, is the port open in the firewall, or are there too many requests of this host?"},
	} {
		if strings.Contains(text, known.has) {
			return fmt.Errorf("%s: %s (%w)", step, known.means, err)
		}
	}
	return fmt.Errorf("%s: %w", step, err)
}
