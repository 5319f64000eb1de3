package carrier

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/tunnel/proxydial"
)

// Result is the outcome of one attempt, for metrics.
type Result struct {
	Rung    Rung
	Path    string
	Outcome string        // won, lost (another was faster), slow, failed
	RTT     time.Duration // of the short echo; 0 if it did not come so far
}

// Dialer is the device's side of the rungs. Set the fields before first use; it may be used concurrently.
type Dialer struct {
	// Relay is the relay's host name or address. Through a proxy it is the proxy that resolves it.
	Relay string
	// Name is the relay's name in the requests of LongLived, KeepAlive and Polling; "": Relay.
	Name string
	// TLS is the tunnel's: it shows the device's certificate and accepts the relay's only.
	TLS *tls.Config
	// Proxy says which proxies there are and logs in there.
	Proxy *proxydial.Dialer
	// UDP opens a socket for rung quic; nil: one of the system's choice. It is closed with the carrier.
	UDP func(context.Context) (net.PacketConn, error)
	// Rungs are those to be tried; nil: all. NoDirect: nothing is tried without a proxy, if there is one.
	Rungs    []Rung
	NoDirect bool
	// PortTLS, PortQUIC (443) and PortHTTP (80) are the relay's, where others than these.
	PortTLS, PortQUIC, PortHTTP uint16
	// Web is the outer TLS of rung wss. nil: whatever certificate comes is taken, since a proxy that looks inside shows
	// its own, and the tunnel's TLS inside says who the relay is.
	Web *tls.Config
	// Step is how much later than the one before each attempt of a race begins; 0: 250 ms.
	Step time.Duration
	// Attempt is how long one attempt may take until the relay is connected to, 0: 10 s; in the tunnel's TLS it may say nothing
	// for three times as long.
	Attempt time.Duration
	Limits  Limits
	// Memory remembers what won in which network; nil: nothing does.
	Memory *Memory
	// Network names the network that this host is in; nil: by its default route.
	Network func() string
	// Probed hears of every attempt; nil: nobody does. It is called from several goroutines.
	Probed func(Result)
	Log    *zap.Logger
}

// way is one thing to try: a rung on a path.
type way struct {
	rung  Rung
	proxy proxydial.Proxy
}

func (w way) String() string { return w.rung.String() + " " + w.proxy.String() }

// ErrNoWay is returned where there is nothing to try: no rung fits the proxies that there are.
var ErrNoWay = errors.New("no rung fits")

func (d *Dialer) log() *zap.Logger {
	if d.Log == nil {
		return zap.NewNop()
	}
	return d.Log
}

func port(set, otherwise uint16) uint16 {
	if set == 0 {
		return otherwise
	}
	return set
}

func (d *Dialer) address(p uint16) string {
	return net.JoinHostPort(strings.Trim(d.Relay, "[]"), strconv.Itoa(int(p)))
}

func (d *Dialer) tlsAddress() string  { return d.address(port(d.PortTLS, 443)) }
func (d *Dialer) quicAddress() string { return d.address(port(d.PortQUIC, 443)) }
func (d *Dialer) httpAddress() string { return d.address(port(d.PortHTTP, 80)) }

// ladder returns the ways to the relay, the best first: rung by rung, on each the direct way before proxies.
func (d *Dialer) ladder(ctx context.Context) ([]way, error) {
	proxies, err := d.Proxy.Proxies(ctx, d.tlsAddress())
	if err != nil {
		d.log().Warn("proxies of this network are not known", zap.Error(err))
		proxies = nil // the direct ways are still there
	}
	paths := []proxydial.Proxy{{}}
	for _, p := range proxies {
		if p.Scheme != proxydial.Direct {
			paths = append(paths, p)
		}
	}
	if d.NoDirect && len(paths) > 1 {
		paths = paths[1:]
	}
	rungs := d.Rungs
	if rungs == nil {
		rungs = Rungs()
	}
	var ways []way
	for _, r := range Rungs() {
		if !slices.Contains(rungs, r) {
			continue
		}
		for _, p := range paths {
			if fits(r, p.Scheme) {
				ways = append(ways, way{r, p})
			}
		}
	}
	if len(ways) == 0 {
		return nil, errors.Join(ErrNoWay, err)
	}
	return ways, nil
}

// fits tells whether a rung can be on a path.
func fits(r Rung, s proxydial.Scheme) bool {
	switch r {
	case QUIC, TLS:
		return s == proxydial.Direct
	case Connect:
		return s == proxydial.HTTP || s == proxydial.HTTPS
	case SOCKS5:
		return s == proxydial.SOCKS5
	}
	return true
}

// Dial opens a carrier for a session: it races the ways to the relay, beginning with what won in this network before.
func (d *Dialer) Dial(ctx context.Context) (*Carrier, error) { return d.dial(ctx, []byte{saySession}) }

// DialEnrol opens a carrier for an enrolment.
func (d *Dialer) DialEnrol(ctx context.Context) (*Carrier, error) {
	return d.dial(ctx, []byte{sayEnrol})
}

func (d *Dialer) dial(ctx context.Context, preamble []byte) (*Carrier, error) {
	ways, err := d.ladder(ctx)
	if err != nil {
		return nil, err
	}
	order := slices.Clone(ways)
	network := d.network(ways)
	if known, ok := d.Memory.recall(network); ok {
		if i := slices.IndexFunc(order, func(w way) bool { return w.String() == known }); i > 0 {
			w := order[i]
			order = slices.Insert(slices.Delete(order, i, i+1), 0, w)
		}
	}
	c, w, err := d.race(ctx, order)
	if err != nil {
		return nil, err
	}
	d.Memory.remember(network, w.String(), d.log())
	return c.begin(preamble)
}

// begin says what follows.
func (c *Carrier) begin(preamble []byte) (*Carrier, error) {
	if c.exact != nil && preamble[0] != sayBulk {
		c.exact.loose.Store(true)
	}
	if _, err := c.Write(preamble); err != nil {
		c.Close()
		return nil, fmt.Errorf("%w: %w", errPreamble, err)
	}
	return c, nil
}

// ErrNoBetter is returned when nothing better than what there is gets through.
var ErrNoBetter = errors.New("nothing better gets through")

// Better opens a carrier for the same session on a way that is higher in the ladder than that of than, the highest
// that works; [ErrNoBetter] if none does. It tries one after the other: nobody is waiting.
func (d *Dialer) Better(ctx context.Context, than *Carrier) (*Carrier, error) {
	ways, err := d.ladder(ctx)
	if err != nil {
		return nil, err
	}
	for _, w := range ways {
		if w.rung == than.Rung && w.proxy.String() == than.Path || w.rung > than.Rung {
			break
		}
		c, p, err := d.try(ctx, w)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err == nil && p.slow {
			c.Close()
			d.report(w, "slow", p)
			continue
		}
		if err != nil {
			d.report(w, "failed", p)
			continue
		}
		d.report(w, "won", p)
		d.Memory.remember(d.network(ways), w.String(), d.log())
		return c.begin([]byte{saySession})
	}
	return nil, ErrNoBetter
}

// ErrNoBulk is returned for a session on a rung that cannot be unwrapped: its bulk stays in it.
var ErrNoBulk = errors.New("no bulk on this rung")

// DialBulk opens a carrier for bulk by the same way as that of a session, if it can be unwrapped; it shows the ticket.
func (d *Dialer) DialBulk(ctx context.Context, like *Carrier, ticket [16]byte) (*Carrier, error) {
	ways, err := d.ladder(ctx)
	if err != nil {
		return nil, err
	}
	rungs := []Rung{like.Rung}
	if like.Rung == QUIC {
		rungs = []Rung{TLS} // where UDP gets through TCP does mostly, and it is spliced
	}
	for _, w := range ways {
		if !slices.Contains(rungs, w.rung) || w.proxy.String() != like.Path || w.rung > SOCKS5 {
			continue
		}
		c, _, err := d.open(ctx, w)
		if err != nil {
			return nil, err
		}
		if c.exact == nil {
			c.Close()
			return nil, ErrNoBulk
		}
		return c.begin(append([]byte{sayBulk}, ticket[:]...))
	}
	return nil, ErrNoBulk
}

// report tells the observer.
func (d *Dialer) report(w way, outcome string, p probed) {
	if d.Probed != nil {
		d.Probed(Result{Rung: w.rung, Path: w.proxy.String(), Outcome: outcome, RTT: p.echo})
	}
}
