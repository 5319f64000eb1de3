package main

import (
	"fmt"
	"strings"

	"edged.dev/edged/pkg/h323"
	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sharedport"
	"edged.dev/edged/pkg/sipalg/flow"
	"edged.dev/edged/pkg/splice/forward"
)

// Handlers of listeners, as the port table names them.
const (
	handlerSIP     = "sip"
	handlerH323    = "h323"
	handlerT120    = "t120"
	handlerAudio   = "audiocall"
	handlerILS     = "ils"
	handlerTFTP    = "tftp" // of RFC 1350
	handlerTURN    = "turn"
	handlerMSTURN  = "msturn"
	handlerForward = "forward"
	handlerProxy   = "proxy"
	handlerTunnel  = "tunnel"
	handlerBlocked = "blocked"
)

// portListener is one listener of the configuration, whatever its service.
type portListener struct {
	Proto   string `json:"protocol"` // tcp or udp
	Network string `json:"network"`
	Port    uint16 `json:"port"`
	Handler string `json:"handler"`
	// Scheme is how the configuration writes it, e.g. tls.
	Scheme string `json:"scheme"`
	// To is where a forward leads, Ends says that TLS ends at the edge, Names which server names alone it gets.
	To    string   `json:"to,omitempty"`
	Ends  bool     `json:"tls_terminated,omitempty"`
	Names []string `json:"server_names,omitempty"`
	// Classes say by which first bytes a forward on a shared port gets connections.
	Classes []sharedport.Kind `json:"classes,omitempty"`
	// Key is where it stands in the configuration, Profile which profile has put it there.
	Key     string      `json:"key"`
	Profile profileName `json:"profile,omitempty"`
}

// String returns SCHEME://NETWORK:PORT.
func (p portListener) String() string {
	return fmt.Sprintf("%s://%s:%d", p.Scheme, p.Network, p.Port)
}

// listeners returns the listeners of all services, in the order of the configuration.
func (c *config) listeners() []portListener {
	out := []portListener{}
	add := func(p portListener) {
		p.Profile = c.from[p.Key]
		out = append(out, p)
	}
	for i, l := range c.SIP.Listen {
		proto := "tcp"
		if l.Proto == flow.UDP {
			proto = "udp"
		}
		add(portListener{
			Proto: proto, Network: l.Network, Port: l.Port, Handler: handlerSIP, Scheme: l.Proto.String(),
			Key: fmt.Sprintf("sip.listen[%d]", i),
		})
	}
	for _, s := range []struct {
		key, handler string
		list         []pinhole.Listen
	}{
		{"t120.listen", handlerT120, c.T120.Listen}, {"ils.listen", handlerILS, c.ILS.Listen},
		{"audiocall.listen", handlerAudio, c.Audio.Listen},
		{"h323.listen", handlerH323, c.H323.Listen}, {"h323.ras", handlerH323, c.H323.RAS},
		{"tftp.trivial.listen", handlerTFTP, c.TFTP.Trivial.Listen},
		{"msturn.listen", handlerMSTURN, c.MSTURN.Listen},
		{"blocked", handlerBlocked, c.Blocked},
	} {
		for i, l := range s.list {
			add(portListener{
				Proto: l.Proto, Network: l.Network, Port: l.Port, Handler: s.handler, Scheme: l.Proto,
				Key: fmt.Sprintf("%s[%d]", s.key, i),
			})
		}
	}
	for i, network := range c.H323.Discovery {
		add(portListener{
			Proto: "udp", Network: network, Port: h323.DiscoveryGroup().Port(), Handler: handlerH323, Scheme: "udp",
			Key: fmt.Sprintf("h323.discovery[%d]", i),
		})
	}
	for i, l := range c.TURN.Listen {
		add(portListener{
			Proto: l.Transport().Proto, Network: l.Network, Port: l.Port, Handler: handlerTURN, Scheme: l.Proto,
			Key: fmt.Sprintf("turn.listen[%d]", i),
		})
	}
	for _, l := range c.TURN.Discovery(c.networks()) {
		add(portListener{
			Proto: l.Proto, Network: l.Network, Port: l.Port, Handler: handlerTURN, Scheme: l.Proto, Key: "turn.alternate_port",
		})
	}
	c.unreadListeners(add)
	return out
}

// unreadListeners adds those of services that pass on what they do not read.
func (c *config) unreadListeners(add func(portListener)) {
	for i, r := range c.Forwards {
		add(portListener{
			Proto: "tcp", Network: r.Listen.Network, Port: r.Listen.Port, Handler: handlerForward, Scheme: "tcp",
			To: r.To.String(), Ends: r.TLS == forward.TLSTerminate, Names: r.SNI, Classes: r.Classes, Key: fmt.Sprintf("forwards[%d]", i),
		})
	}
	for i, l := range c.Proxy.Listen {
		add(portListener{
			Proto: "tcp", Network: l.Network, Port: l.Port, Handler: handlerProxy, Scheme: l.Proto, Key: fmt.Sprintf("proxy.listen[%d]", i),
		})
	}
	for i, l := range c.Tunnel.Listen {
		add(portListener{
			Proto: l.Transport().Proto, Network: l.Network, Port: l.Port, Handler: handlerTunnel, Scheme: l.Proto, Key: fmt.Sprintf("tunnel.listen[%d]", i),
		})
	}
}

// what says who has the listener, in words.
func (p portListener) what() string {
	switch p.Handler {
	case handlerBlocked:
		return "blocked, logged"
	case handlerForward:
		text := "forward to " + p.To
		if p.Ends {
			text += ", TLS terminated,"
		}
		if len(p.Classes) > 0 {
			var kinds []string
			for _, k := range p.Classes {
				kinds = append(kinds, k.String())
			}
			text += " of " + strings.Join(kinds, ", ")
		}
		if len(p.Names) > 0 {
			text += " of " + strings.Join(p.Names, ", ")
		}
		return strings.TrimSuffix(text, ",")
	}
	return p.Handler
}

// why says what in the configuration has opened it.
func (p portListener) why() string {
	if p.Profile != "" {
		return "profile " + string(p.Profile)
	}
	return p.Key
}
