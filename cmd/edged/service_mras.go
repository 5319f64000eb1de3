package main

import (
	"errors"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg"
	"edged.dev/edged/pkg/turn/mras"
	"edged.dev/edged/pkg/turn/msturn"
)

// relayAuth has SIP's requests for credentials of the media relay answered, and the answers of others rewritten.
type relayAuth struct {
	cfg    mras.Config
	issuer *mras.Issuer
	server *msturn.Server
	nets   pinhole.Networks
	log    *zap.Logger
	next   sipalg.ContentEditor // of all other contents; nil: they pass
}

// withRelayAuth puts MRAS before whoever looks at contents already, if it is on.
func (d *serviceDeps) withRelayAuth(server *msturn.Server) {
	cfg := d.cfg.MSTURN
	if !cfg.MRAS.On() {
		return
	}
	a := &relayAuth{cfg: cfg.MRAS, issuer: mras.New(cfg.MRAS, string(cfg.Secrets[0])), server: server, nets: d.cfg.networks(), log: d.log.Named("mras"), next: d.contents}
	d.answers, d.contents = a, a
}

// Answer implements [sipalg.Answerer].
func (a *relayAuth) Answer(now time.Time, q sipalg.Question) (sipalg.Reply, bool) {
	if q.Method != "SERVICE" || !mras.Is(string(q.Type)) || !a.cfg.Serves(q.Sender.Network, a.nets) {
		return sipalg.Reply{}, false
	}
	body, user, err := a.issuer.Answer(q.Body, now)
	switch {
	case errors.Is(err, mras.ErrTooLarge):
		return sipalg.Reply{Status: 413, Reason: "Request Entity Too Large"}, true
	case err != nil:
		a.log.Info("request for credentials refused", zap.Stringer("from", q.Sender.Addr), zap.Error(err))
		return sipalg.Reply{Status: 400, Reason: "Bad Request"}, true
	}
	a.log.Info("credentials", zap.String("user", user), zap.Stringer("from", q.Sender.Addr))
	return sipalg.Reply{Status: 200, Reason: "OK", Type: mras.MediaType, Body: body}, true
}

// Edit implements [sipalg.ContentEditor].
func (a *relayAuth) Edit(now time.Time, c sipalg.Content) sipalg.Verdict {
	if c.Method != "SERVICE" {
		if a.next == nil {
			return sipalg.Verdict{}
		}
		return a.next.Edit(now, c)
	}
	if !a.cfg.Rewrite || c.Status != 200 || !mras.Is(string(c.Type)) || !a.cfg.Serves(c.Sender.Network, a.nets) {
		return sipalg.Verdict{}
	}
	body, login, err := a.issuer.Rewrite(c.Body, now)
	if err != nil {
		a.log.Info("answer of another MRAS passes as it is", zap.Stringer("from", c.Sender.Addr), zap.Error(err))
		return sipalg.Verdict{Reason: "mras_malformed"}
	}
	if !a.server.Learn(login.Name, login.Password, c.From, login.Until) {
		return sipalg.Verdict{Reason: "mras_full"}
	}
	return sipalg.Verdict{Body: body, Reason: "mras_rewritten"}
}

// Ended implements [sipalg.ContentEditor].
func (a *relayAuth) Ended(callID string) {
	if a.next != nil {
		a.next.Ended(callID)
	}
}

// Lost implements [sipalg.ContentEditor].
func (a *relayAuth) Lost(callID, one, other string) {
	if a.next != nil {
		a.next.Lost(callID, one, other)
	}
}
