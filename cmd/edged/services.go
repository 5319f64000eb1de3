package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"edged.dev/edged/internal/denylist"
	"edged.dev/edged/pkg/firewall"
	"edged.dev/edged/pkg/ils"
	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg"
	"edged.dev/edged/pkg/splice"
	"edged.dev/edged/pkg/splice/forward"
)

// service is one running part of the daemon. Only name and serve are always set.
type service struct {
	name string
	// serve blocks until ctx ends and everything of the service has ended.
	serve func(ctx context.Context) error
	// ready is closed once the service takes calls; nil: at once.
	ready <-chan struct{}
	// alive returns once the service has answered; it hangs if the service does.
	alive func()
	// reload takes over the live keys of a configuration that has been checked.
	reload func(*config) error
	// drain stops the service from taking new calls.
	drain func()
	// busy counts the calls for which a drain waits.
	busy func() int
	// status is the service's part of /api/v1/status.
	status func() any
	// views are further documents under /api/v1/, by name.
	views map[string]func() any
	// hangUp ends the calls of an ID and returns how many there were; nil: the service has none.
	hangUp func(id string) int
	// expel ends what those have who are on the list of bans now, and returns how much that was; nil: the service has nothing.
	expel func() int
	// actions are what may be done by way of the admin listener, by method and path: "DELETE /api/v1/things".
	actions map[string]http.HandlerFunc
}

// serviceDeps is what services are built from. A row of the table may add what the rows below it need.
type serviceDeps struct {
	cfg    *config
	log    *zap.Logger
	reg    prometheus.Registerer
	tls    *tlsStore
	events *eventBroker
	// bans are those whom the operator has shut out.
	bans *denylist.List
	// handed are the listeners that systemd holds.
	handed *handedSockets
	// records takes what is said of calls that have ended; nil: nobody wants it.
	records *callRecords
	// spans makes traces of calls for a collector; nil: there is none.
	spans *callSpans
	// traces keeps signalling.
	traces *callTraces
	// captures writes media down; the relay gives it its tap.
	captures *mediaCaptures
	// joiner is set by splice, opener by the relay.
	joiner *splice.Joiner
	opener pinhole.Opener
	// fingerprint is that of the relay's certificate.
	fingerprint string
	// ports is set by the relay: ports that clients own.
	ports pinhole.PortOpener
	// dialect is set by MS-TURN: TURN shows it first what comes to its UDP ports.
	dialect func(net.PacketConn, netip.AddrPort, []byte) bool
	// directory is set by ILS: who is where inside.
	directory *ils.Registry
	// t120 is set by T.120: it speaks on the connections that H.323 opens for it.
	t120 func(context.Context, [2]net.Conn, func(pinhole.Side, int))
	// conferences is set by T.120: pinholes for the data conferences that SIP announces.
	conferences pinhole.Opener
	// contents is set by TFTP: it looks at what SIP messages carry besides session descriptions.
	contents sipalg.ContentEditor
	// answers is set by MS-TURN: it answers requests for credentials.
	answers sipalg.Answerer
	// links is set by the service of that name, for the agent that carries them.
	links []linkEnd
	// shared are the ports that services share.
	shared sharedPorts
	// agent is set by the tunnel's agent: it says how it is doing, and whom it may reach.
	agent func(*tunnelsView)
	// pinholes is set by the firewall: which ports are open; nil: nobody is told.
	pinholes *firewall.Pinholes
	// kernel is set by the relay, nil if it has none.
	kernel forward.Kernel
}

// buildServices is the table of services, in the order in which they start. A
// service whose section is missing is off.
func buildServices(ctx context.Context, d *serviceDeps) ([]*service, error) {
	table := []struct {
		name  string
		on    bool
		build func(context.Context, *serviceDeps) (*service, error)
	}{
		{"splice", true, buildSplice},
		{"hep", d.cfg.HEP.To.IsValid(), buildHEP},
		{"otel", !d.cfg.OTel.Endpoint.IsZero(), buildOTel},
		{"records", d.cfg.CDR.File != "" || !d.cfg.CDR.Syslog.IsZero(), buildRecords},
		{"links", len(d.cfg.Links) > 0, buildLinks}, // whose addresses the others bind
		{"ports", len(d.cfg.sharedListens()) > 0, buildShared},
		{"firewall", d.cfg.Firewall.Manage, buildFirewall},
		{"media", true, buildMedia},
		{"ils", len(d.cfg.ILS.Listen) > 0, buildILS},
		// H.323 opens T.120 too: what is said there is checked whether there are listeners or not.
		{"t120", len(d.cfg.T120.Listen) > 0 || len(d.cfg.H323.Listen) > 0, buildT120},
		{"tftp", d.cfg.TFTP.Ports.First > 0, buildTFTP},
		{"msturn", len(d.cfg.MSTURN.Listen) > 0, buildMSTURN},
		{"sip", len(d.cfg.SIP.Listen) > 0, buildSIP},
		{"trivial", len(d.cfg.TFTP.Trivial.Listen) > 0, buildTrivial},
		{"h323", len(d.cfg.H323.Listen) > 0, buildH323},
		{"audiocall", len(d.cfg.Audio.Listen) > 0, buildAudioCall},
		{"turn", len(d.cfg.TURN.Listen) > 0, buildTURN},
		{"proxy", len(d.cfg.Proxy.Listen) > 0, buildProxy},
		{"forwards", len(d.cfg.Forwards) > 0, buildForwards},
		{"tunnel", len(d.cfg.Tunnel.Listen) > 0, buildTunnel},
		{"agent", len(d.cfg.Agent.Relays) > 0, buildAgent},
		{"blocked", len(d.cfg.Blocked) > 0, buildBlocked},
	}
	var out []*service
	for _, row := range table {
		if !row.on || d.cfg.only != "" && d.cfg.only != row.name {
			continue
		}
		s, err := row.build(ctx, d)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", row.name, err)
		}
		s.name = row.name
		out = append(out, s)
	}
	return out, nil
}
