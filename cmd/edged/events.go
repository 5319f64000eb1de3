package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"
)

// event is one line of /api/v1/events.
type event struct {
	ID   uint64    `json:"id"`
	Time time.Time `json:"time"`
	Type string    `json:"type"`
	Data any       `json:"data,omitempty"`
}

const (
	eventHistory = 256 // events kept for a client that comes back with Last-Event-ID
	eventQueue   = 64  // events a slow client may be behind before it loses some
	eventClients = 32
)

// eventBroker passes events to the clients of /api/v1/events. A client that
// does not read loses events, never holds up the daemon: it sees a gap in the ids.
type eventBroker struct {
	mu      sync.Mutex
	next    uint64
	history []event
	clients map[chan event]struct{}
}

func newEventBroker() *eventBroker { return &eventBroker{clients: map[chan event]struct{}{}} }

// publish sends an event to whoever listens. It never blocks.
func (b *eventBroker) publish(kind string, data any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.next++
	e := event{ID: b.next, Time: time.Now().UTC(), Type: kind, Data: data}
	if len(b.history) == eventHistory {
		b.history = append(b.history[:0], b.history[1:]...)
	}
	b.history = append(b.history, e)
	for ch := range b.clients {
		select {
		case ch <- e:
		default:
		}
	}
}

// subscribe returns the events after the given id that are still known, and a queue of the
// coming ones; nil if there are too many clients.
func (b *eventBroker) subscribe(after uint64) ([]event, chan event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.clients) >= eventClients {
		return nil, nil
	}
	var missed []event
	for _, e := range b.history {
		if after > 0 && e.ID > after {
			missed = append(missed, e)
		}
	}
	ch := make(chan event, eventQueue)
	b.clients[ch] = struct{}{}
	return missed, ch
}

func (b *eventBroker) unsubscribe(ch chan event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.clients, ch)
}

// recent returns the document "events/recent", the latest event first.
func (b *eventBroker) recent() any {
	b.mu.Lock()
	defer b.mu.Unlock()
	list := append([]event{}, b.history...)
	slices.Reverse(list)
	return map[string]any{"events": list}
}

// serve streams events to one client as server-sent events.
func (b *eventBroker) serve(w http.ResponseWriter, r *http.Request) {
	var after uint64
	fmt.Sscan(r.Header.Get("Last-Event-ID"), &after) // not a number: from now on
	missed, ch := b.subscribe(after)
	if ch == nil {
		http.Error(w, "too many clients of events", http.StatusServiceUnavailable)
		return
	}
	defer b.unsubscribe(ch)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	out := http.NewResponseController(w)
	send := func(text string) bool {
		out.SetWriteDeadline(time.Now().Add(10 * time.Second))
		_, err := fmt.Fprint(w, text)
		return err == nil && out.Flush() == nil
	}
	ok := send(": edged events\n\n")
	for _, e := range missed {
		ok = ok && send(e.sse())
	}
	beat := time.NewTicker(15 * time.Second)
	defer beat.Stop()
	for ok {
		select {
		case e := <-ch:
			ok = send(e.sse())
		case <-beat.C:
			ok = send(": still here\n\n")
		case <-r.Context().Done():
			return
		}
	}
}

// sse returns the event as text/event-stream writes it.
func (e event) sse() string {
	data, err := json.Marshal(e)
	if err != nil {
		data = fmt.Appendf(nil, `{"id":%d,"type":"error"}`, e.ID)
	}
	return fmt.Sprintf("id: %d\nevent: %s\ndata: %s\n\n", e.ID, e.Type, data)
}

func writeJSON(w http.ResponseWriter, v any) {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Write(append(data, '\n'))
}
