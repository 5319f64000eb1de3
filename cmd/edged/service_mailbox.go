package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"edged.dev/edged/pkg/tunnel/agent"
	"edged.dev/edged/pkg/tunnel/device"
	"edged.dev/edged/pkg/tunnel/mailbox"
	"edged.dev/edged/pkg/tunnel/mailbox/carry"
	"edged.dev/edged/pkg/tunnel/mailbox/desk"
	"edged.dev/edged/pkg/tunnel/mailbox/letter"
	"edged.dev/edged/pkg/tunnel/mux"
)

// mailServiceName is what the policy calls the right to leave messages for a device.
const mailServiceName = "mailbox"

// mailService is the relay's mailboxes. A nil one is none.
type mailService struct {
	t      *tunnelService
	store  *mailbox.Store
	server *carry.Server
}

// openMail opens the mailboxes, nil if there are none: they are off, or there is no place for them.
func openMail(t *tunnelService, c *config) (*mailService, error) {
	if c.Tunnel.Mailbox.Total == 0 || c.State.Dir == "" {
		return nil, nil
	}
	log := t.log.Named("mailbox")
	store, err := mailbox.Open(filepath.Join(c.tunnelDir(), "mailbox"), mailbox.Options{Config: c.Tunnel.Mailbox, Group: t.groupOf, Log: log})
	if err != nil {
		return nil, err
	}
	m := &mailService{t: t, store: store}
	m.server = &carry.Server{Store: store, Allow: t.mayLeave, Log: log, Card: func(card []byte, d mailbox.Device) error {
		_, err := letter.ReadCard(card, d)
		return err
	}}
	return m, nil
}

// groupOf returns a device's first group.
func (t *tunnelService) groupOf(d mailbox.Device) string {
	if known, ok := t.registry.Lookup(device.ID(d)); ok && len(known.Groups) > 0 {
		return known.Groups[0]
	}
	return ""
}

// mayLeave tells whether a device may leave messages for another.
func (t *tunnelService) mayLeave(from, to mailbox.Device) error {
	a, known := t.registry.Lookup(device.ID(from))
	b, ok := t.registry.Lookup(device.ID(to))
	if !known || !ok {
		return errors.New("no such device")
	}
	if !device.Policy(t.state.Load().cfg.Tunnel.Policy).Allows(a, b, mailServiceName) {
		return fmt.Errorf("no rule lets %s reach the service %s of %s", a.Name, mailServiceName, b.Name)
	}
	return nil
}

// streams returns what serves the streams of devices to their mailboxes.
func (m *mailService) streams() func(context.Context, []byte, *mux.Stream, device.ID) {
	if m == nil {
		return nil
	}
	return func(ctx context.Context, head []byte, s *mux.Stream, peer device.ID) {
		if err := m.server.Serve(ctx, head, s, mailbox.Device(peer)); err != nil {
			m.server.Log.Debug("mailbox stream ended", zap.String("device", peer.Short()), zap.Error(err))
		}
	}
}

func (m *mailService) close() error {
	if m == nil {
		return nil
	}
	return m.store.Close()
}

// mailboxView is an item of /api/v1/mailboxes.
type mailboxView struct {
	Device   string     `json:"device"`
	ID       device.ID  `json:"id"`
	Messages int        `json:"messages"`
	Octets   int64      `json:"octets"`
	Quota    int64      `json:"quota"`
	Readers  int        `json:"readers"`
	Oldest   *time.Time `json:"oldest,omitempty"`
}

// view is /api/v1/mailboxes: the mailboxes in which something waits, by name.
func (m *mailService) view() any {
	out := []mailboxView{}
	if m == nil {
		return out
	}
	for d, st := range m.store.Boxes() {
		v := mailboxView{ID: device.ID(d), Messages: st.Messages, Octets: st.Octets, Quota: st.Quota, Readers: st.Readers}
		if known, ok := m.t.registry.Lookup(v.ID); ok {
			v.Device = known.Name
		}
		if !st.Oldest.IsZero() {
			oldest := st.Oldest.UTC()
			v.Oldest = &oldest
		}
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b mailboxView) int { return strings.Compare(a.Device+a.ID.String(), b.Device+b.ID.String()) })
	return out
}

// actions are what may be done with mailboxes: DELETE /api/v1/mailboxes?device=NAME|ID purges one.
func (m *mailService) actions() map[string]http.HandlerFunc {
	if m == nil {
		return nil
	}
	return map[string]http.HandlerFunc{"DELETE /api/v1/mailboxes": func(w http.ResponseWriter, r *http.Request) {
		id, err := m.deviceOf(r.URL.Query().Get("device"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusNotFound)
			return
		}
		n, err := m.store.Purge(mailbox.Device(id))
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		m.server.Log.Info("mailbox purged", zap.Stringer("device", id), zap.Int("messages", n))
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(map[string]int{"messages": n}) //nolint:errcheck,errchkjson // the client has gone
	}}
}

// deviceOf returns the device of a name or an ID, which need not be admitted any more.
func (m *mailService) deviceOf(name string) (device.ID, error) {
	if id, err := device.ParseID(name); err == nil {
		return id, nil
	}
	list := []device.Device{}
	if users, err := readTunnelUsers(m.t.state.Load().cfg); err == nil {
		list = append(list, users...)
	}
	if m.t.store != nil {
		if enrolled, err := m.t.store.Devices(); err == nil {
			list = append(list, enrolled...)
		}
	}
	for _, d := range list {
		if d.Name == name {
			return d.ID, nil
		}
	}
	return device.ID{}, fmt.Errorf("no device is called %q", name)
}

// mailMetrics are the figures of a store that stand for themselves.
func mailMetrics() []struct {
	name, help string
	kind       prometheus.ValueType
	value      func(mailbox.Stats) float64
} {
	const counter, gauge = prometheus.CounterValue, prometheus.GaugeValue
	type stats = mailbox.Stats
	return []struct {
		name, help string
		kind       prometheus.ValueType
		value      func(stats) float64
	}{
		{"stored_total", "Messages that were stored.", counter, func(s stats) float64 { return float64(s.Stored) }},
		{"ephemeral_total", "Messages that were kept in memory only.", counter, func(s stats) float64 { return float64(s.Passed) }},
		{"acknowledged_total", "Messages that their recipients have acknowledged.", counter, func(s stats) float64 { return float64(s.Acked) }},
		{"expired_total", "Messages that nobody fetched in time.", counter, func(s stats) float64 { return float64(s.Expired) }},
		{"purged_total", "Messages that were purged.", counter, func(s stats) float64 { return float64(s.Purged) }},
		{"discarded_total", "Messages that were not kept because their recipient was away.", counter, func(s stats) float64 { return float64(s.Discarded) }},
		{"damaged_total", "Messages that could not be read from the disk.", counter, func(s stats) float64 { return float64(s.Damaged) }},
		{"changes_total", "Changes that were synced; divided by the transactions, how many shared one.", counter, func(s stats) float64 { return float64(s.Changes) }},
		{"devices", "Devices for which something waits.", gauge, func(s stats) float64 { return float64(s.Devices) }},
		{"messages", "Messages that wait, for each recipient.", gauge, func(s stats) float64 { return float64(s.Messages) }},
		{"bytes", "Octets on disk and promised to half-sent messages.", gauge, func(s stats) float64 { return float64(s.Octets) }},
		{"oldest_seconds", "Age of the message that waits longest.", gauge, func(s stats) float64 { return s.Oldest.Seconds() }},
		{"uploads", "Large messages that are being sent.", gauge, func(s stats) float64 { return float64(s.Uploads) }},
		{"broken", "1 if the disk has failed: nothing is taken until a restart.", gauge, func(s stats) float64 {
			if s.Broken {
				return 1
			}
			return 0
		}},
	}
}

func mailDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("edged_mailbox_"+name, help, labels, nil)
}

func mailRefused() *prometheus.Desc {
	return mailDesc("refused_total", "Messages that were refused.", "reason")
}

func mailSync() *prometheus.Desc {
	return mailDesc("sync_seconds", "Time of a transaction, until it was synced to disk.")
}

// Describe implements [prometheus.Collector].
func (m *mailService) Describe(ch chan<- *prometheus.Desc) {
	for _, f := range mailMetrics() {
		ch <- mailDesc(f.name, f.help)
	}
	ch <- mailRefused()
	ch <- mailSync()
}

// Collect implements [prometheus.Collector].
func (m *mailService) Collect(ch chan<- prometheus.Metric) {
	st := m.store.Stats()
	for _, f := range mailMetrics() {
		ch <- prometheus.MustNewConstMetric(mailDesc(f.name, f.help), f.kind, f.value(st))
	}
	for reason, n := range st.Refused() {
		ch <- prometheus.MustNewConstMetric(mailRefused(), prometheus.CounterValue, float64(n), reason)
	}
	buckets, sum := make(map[float64]uint64), uint64(0)
	for i, bound := range mailbox.SyncBounds() {
		sum += st.SyncTimes[i]
		buckets[bound.Seconds()] = sum
	}
	ch <- prometheus.MustNewConstHistogram(mailSync(), st.Commits, st.SyncTotal.Seconds(), buckets)
}

// messagesSocket returns the path at which the agent serves programs, "" for none.
func (c *config) messagesSocket() string {
	switch {
	case c.Agent.Messages != "":
		return within(c.dir, c.Agent.Messages)
	case c.State.Dir != "":
		return filepath.Join(c.tunnelDir(), "messages.sock")
	}
	return ""
}

// deskService is the agent's socket for programs. Without a listener it does nothing.
type deskService struct {
	ln    net.Listener
	desk  *desk.Desk
	names atomic.Pointer[config]
}

// openDesk opens the socket.
func openDesk(ctx context.Context, c *config, key device.Key, a *agent.Agent, log *zap.Logger) (*deskService, error) {
	s := &deskService{}
	s.names.Store(c)
	path := c.messagesSocket()
	if path == "" || c.State.Dir == "" {
		return s, nil
	}
	k, err := letter.NewKey(key.Public(), key.Sign)
	if err != nil {
		return nil, err
	}
	client := carry.NewClient(k, func(ctx context.Context, head []byte) (carry.Stream, error) { return a.OpenRelay(ctx, head) })
	s.desk, err = desk.New(desk.Deps{
		Device: mailbox.Device(key.ID()), Client: client, Spool: filepath.Join(c.tunnelDir(), "spool"), Log: log.Named("messages"),
		Resolve: func(name string) (mailbox.Device, error) {
			id, err := s.names.Load().Agent.Resolve(name)
			return mailbox.Device(id), err
		},
		Text: func(d mailbox.Device) string { return device.ID(d).String() }, Name: s.nameOf,
	})
	if err != nil {
		return nil, err
	}
	if s.ln, err = listenUnix(ctx, path); err != nil {
		return nil, fmt.Errorf("agent.messages_socket: %w", err)
	}
	return s, nil
}

// nameOf returns the name that the configuration has for a device.
func (s *deskService) nameOf(d mailbox.Device) string {
	for name, id := range s.names.Load().Agent.Devices {
		if id == device.ID(d) {
			return name
		}
	}
	return ""
}

// serve serves programs until ctx ends.
func (s *deskService) serve(ctx context.Context) error {
	if s.ln == nil {
		<-ctx.Done()
		return nil
	}
	server := &http.Server{
		Handler: s.desk, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 64 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.desk.Run(ctx) })
	g.Go(func() error {
		<-ctx.Done()
		return server.Close()
	})
	g.Go(func() error {
		if err := server.Serve(s.ln); ctx.Err() == nil {
			return err
		}
		return nil
	})
	return g.Wait()
}
