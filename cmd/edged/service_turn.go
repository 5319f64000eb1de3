package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/media"
	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/turn"
)

// turnWatch is how often the files of users and secrets, and the host's addresses, are looked at.
const turnWatch = 5 * time.Second

// buildTURN builds the STUN and TURN server.
func buildTURN(ctx context.Context, d *serviceDeps) (*service, error) {
	files, err := readTURNFiles(d.cfg.TURN, d.cfg.dir)
	if err != nil {
		return nil, err
	}
	nets, own := d.cfg.networks(), &hostAddresses{}
	own.refresh()
	deps := turn.Deps{
		Networks: nets, Ports: d.ports, Streams: relayStreams{d.cfg.Pinholes.TCP}, Own: own.has, Dialect: d.dialect,
		Connections: d.cfg.Limits.PerSource.Connections, Deny: d.bans, Users: files.users, Secrets: files.secrets,
	}
	if d.cfg.TURN.UsersURL != "" {
		deps.Directory = userSite{d.cfg.TURN.UsersURL, d.cfg.TURN.Realm, &http.Client{}}
	}
	server, err := turn.New(d.cfg.TURN, deps, d.log.Named("turn"))
	if err != nil {
		return nil, err
	}
	socks, err := bindTURN(ctx, d, nets)
	if err != nil {
		return nil, err
	}
	d.reg.MustRegister(server.Collector())
	w := &turnWatcher{server: server, own: own, log: d.log.Named("turn")}
	w.state.Store(&turnState{d.cfg, files})
	return &service{
		serve: func(ctx context.Context) error { return socks.serve(ctx, serveTURN(d, server), w.run) },
		alive: func() { server.Open() },
		reload: func(c *config) error {
			server.SetPerSource(c.Limits.PerSource.Connections)
			return w.reload(c)
		},
		drain:  server.Drain,
		busy:   server.Open,
		expel:  server.Expel,
		status: func() any { return map[string]any{"allocations": server.Open(), "listeners": socks.names()} },
		views:  map[string]func() any{"turn": func() any { return map[string]any{"turn": server.Allocations()} }},
	}, nil
}

// userSite asks turn.users_url for users.
type userSite struct {
	address, realm string
	client         *http.Client
}

// maxPassword bounds what is read of an answer.
const maxPassword = 1024

// Password implements [turn.Directory].
func (s userSite) Password(ctx context.Context, name string) (password string, found bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.address, nil)
	if err != nil {
		return "", false, err
	}
	q := req.URL.Query()
	q.Set("username", name)
	q.Set("realm", s.realm)
	req.URL.RawQuery = q.Encode()
	resp, err := s.client.Do(req)
	if err != nil {
		return "", false, errors.New("turn.users_url does not answer") // the error has the name in it
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxPassword+1))
	switch {
	case resp.StatusCode == http.StatusNotFound:
		return "", false, nil
	case resp.StatusCode != http.StatusOK:
		return "", false, fmt.Errorf("turn.users_url answers %s", resp.Status)
	case err != nil:
		return "", false, fmt.Errorf("turn.users_url: %w", err)
	}
	password = strings.TrimRight(string(b), "\r\n")
	if password == "" || len(password) > maxPassword || strings.ContainsAny(password, "\r\n") {
		return "", false, errors.New("turn.users_url answers no password of one line")
	}
	return password, true, nil
}

// turnFiles is what the files of users and secrets hold.
type turnFiles struct {
	users   map[string]string
	secrets []string
	stamp   [2]string // of each file, to see that it has changed
}

// readTURNFiles reads the files that the section names. All faults come at once, joined.
func readTURNFiles(c turn.Config, dir string) (f turnFiles, err error) {
	read := func(i int, key, file string, take func(text string) error) error {
		if file == "" {
			return nil
		}
		f.stamp[i] = stampOf(within(dir, file))
		text, err := os.ReadFile(within(dir, file))
		if err == nil {
			err = take(string(text))
		}
		if err != nil {
			return pinhole.Fault{Key: key, Text: err.Error()}
		}
		return nil
	}
	return f, errors.Join(
		read(0, "users_file", c.UsersFile, func(text string) (err error) {
			f.users, err = turn.ParseUsers(text)
			return err
		}),
		read(1, "secret_file", c.SecretFile, func(text string) (err error) {
			f.secrets, err = turn.ParseSecrets(text)
			return err
		}))
}

// stampOf says when and how long a file is; a Kubernetes secret is a link to another file when it changes.
func stampOf(file string) string {
	st, err := os.Stat(file)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprint(st.ModTime().UnixNano(), st.Size())
}

// watchFiles takes over files that have changed, until ctx ends. Stamps returns those of the files now and of those in use;
// files that reload refuses are not tried again before they change.
func watchFiles[S comparable](ctx context.Context, every time.Duration, log *zap.Logger, stamps func() (now, used S), reload func() error) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	var refused S
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now, used := stamps()
		if now == used || now == refused {
			continue
		}
		if err := reload(); err != nil {
			refused = now
			log.Error("files have changed but can not be taken over, the old ones stay", zap.Error(err))
			continue
		}
		log.Info("files read again")
	}
}

// turnState is what runs.
type turnState struct {
	cfg   *config
	files turnFiles
}

// turnWatcher has files of users and secrets taken over when they change.
type turnWatcher struct {
	server *turn.Server
	own    *hostAddresses
	log    *zap.Logger
	// loading is held while a configuration is taken over, so that a changed file does not bring back the one before it.
	loading sync.Mutex
	state   atomic.Pointer[turnState]
}

func (w *turnWatcher) reload(c *config) error {
	w.loading.Lock()
	defer w.loading.Unlock()
	return w.reloadLocked(c)
}

func (w *turnWatcher) reloadLocked(c *config) error {
	files, err := readTURNFiles(c.TURN, c.dir)
	if err != nil {
		return err
	}
	if err := w.server.Reload(c.TURN, files.users, files.secrets); err != nil {
		return err
	}
	w.state.Store(&turnState{c, files})
	return nil
}

// run looks until ctx ends.
func (w *turnWatcher) run(ctx context.Context) error {
	return watchFiles(ctx, turnWatch, w.log.With(zap.String("files", "turn users and secrets")), func() (now, used [2]string) {
		w.own.refresh()
		state := w.state.Load()
		for i, file := range []string{state.cfg.TURN.UsersFile, state.cfg.TURN.SecretFile} {
			if file != "" {
				now[i] = stampOf(within(state.cfg.dir, file))
			}
		}
		return now, state.files.stamp
	}, func() error {
		w.loading.Lock()
		defer w.loading.Unlock()
		return w.reloadLocked(w.state.Load().cfg)
	})
}

// hostAddresses are the addresses of the host's interfaces.
type hostAddresses struct {
	set atomic.Pointer[map[netip.Addr]struct{}]
}

func (h *hostAddresses) refresh() {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return // those known before stay
	}
	set := make(map[netip.Addr]struct{}, len(list))
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			set[p.Addr().Unmap().WithZone("")] = struct{}{}
		}
	}
	h.set.Store(&set)
}

func (h *hostAddresses) has(a netip.Addr) bool {
	set := h.set.Load()
	if set == nil {
		return false
	}
	_, ok := (*set)[a.WithZone("")]
	return ok
}

// relayStreams opens sockets of relayed TCP connections, at ports of pinholes.tcp.
type relayStreams struct{ ports media.PortRange }

// Listen implements [turn.StreamOpener]. A port that another pinhole has can not be bound: only ours share theirs.
func (r relayStreams) Listen(ctx context.Context, at netip.Addr) (net.Listener, error) {
	lc := net.ListenConfig{Control: sharePort}
	first := rand.IntN(max(r.ports.Size(), 1))
	for i := range min(r.ports.Size(), 256) {
		port := r.ports.First + uint16((first+i)%r.ports.Size())
		if probe, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(at, port))); err == nil {
			probe.Close() // nobody has it: with SO_REUSEPORT two of ours would both get it
		} else {
			continue
		}
		if ln, err := lc.Listen(ctx, "tcp", netip.AddrPortFrom(at, port).String()); err == nil {
			return ln, nil
		}
	}
	return nil, fmt.Errorf("relay port at %s in pinholes.tcp (%s): %w", at, r.ports, pinhole.ErrExhausted)
}

// Dial implements [turn.StreamOpener].
func (relayStreams) Dial(ctx context.Context, from, to netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{Control: sharePort, LocalAddr: net.TCPAddrFromAddrPort(from)}
	return d.DialContext(ctx, "tcp", to.String())
}

// sharePort lets a listener and connections have one local port (RFC 6062 §5.2).
func sharePort(_, _ string, c syscall.RawConn) error {
	var failed error
	err := c.Control(func(fd uintptr) {
		failed = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
	})
	return errors.Join(err, failed)
}

// bindTURN opens every listener; all or none. What is not in the list are the ports of NAT behaviour discovery.
func bindTURN(ctx context.Context, d *serviceDeps, nets pinhole.Networks) (sockets, error) {
	var list []pinhole.Listen
	for _, l := range d.cfg.TURN.Listen {
		list = append(list, l.Transport())
	}
	return d.bindShared(ctx, "turn.listen[%d]", append(list, d.cfg.TURN.Discovery(nets)...), false)
}

// serveTURN returns what serves one socket. On a port that services share TLS has ended before.
func serveTURN(d *serviceDeps, server *turn.Server) func(context.Context, socket) error {
	return func(ctx context.Context, s socket) error {
		if s.item >= len(d.cfg.TURN.Listen) { // one of NAT behaviour discovery
			return server.ServePacket(ctx, s.network, s.udp)
		}
		l := d.cfg.TURN.Listen[s.item]
		switch l.Proto {
		case "udp":
			return server.ServePacket(ctx, s.network, s.udp)
		case "dtls":
			return server.ServeDTLS(ctx, s.network, s.udp, d.tls.anonymous(l.Network))
		}
		if l.Proto == "tls" && d.shared[pinhole.AddrPortOf(s.tcp.Addr())] == nil {
			return server.Serve(ctx, l, s.tcp, d.tls.anonymous(l.Network))
		}
		return server.Serve(ctx, l, s.tcp, nil)
	}
}

// anonymous returns the configuration of a listener that asks for no certificate of clients. Each handshake gets the
// certificates that are current then.
func (s *tlsStore) anonymous(network string) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		c := s.current.Load()
		return c.server[c.age(network)][tls.NoClientCert], nil
	}}
}

// validateTURN adds what concerns other sections, and the files.
func (c *config) validateTURN(l *faultList) {
	*l = append(*l, sectionFaults("turn", c.TURN.Validate(c.networks()))...)
	if _, err := readTURNFiles(c.TURN, c.dir); err != nil {
		*l = append(*l, sectionFaults("turn", err)...)
	}
	for i, ln := range c.TURN.Listen {
		if (ln.Proto == "tls" || ln.Proto == "dtls") && len(c.TLS.Certificates) == 0 {
			l.add(fmt.Sprintf("turn.listen[%d]", i), "%s needs a certificate under tls.certificates", ln.Proto)
		}
	}
}
