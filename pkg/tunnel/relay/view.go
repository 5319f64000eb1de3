package relay

import (
	"slices"
	"strings"
	"time"

	"edged.dev/edged/pkg/tunnel/device"
)

// Tunnel is an attached device, for the API.
type Tunnel struct {
	Device  string    `json:"device"`
	ID      device.ID `json:"id"`
	Relay   bool      `json:"relay,omitempty"`
	Rung    string    `json:"rung"`
	Path    string    `json:"path,omitempty"`
	Remote  string    `json:"remote"`
	Since   time.Time `json:"since"`
	Carrier bool      `json:"carrier"` // false: the session waits for the device to come back
	Moves   uint32    `json:"moves"`   // to another carrier
	RTT     float64   `json:"rtt_ms"`
	Streams int       `json:"streams"`
	In      uint64    `json:"bytes_in"`
	Out     uint64    `json:"bytes_out"`
	Unacked int       `json:"unacknowledged_bytes"`
}

// Stream is a stream from one device to another, for the API.
type Stream struct {
	From      string    `json:"from"`
	To        string    `json:"to"`
	Service   string    `json:"service"`
	Datagrams bool      `json:"datagrams,omitempty"`
	Since     time.Time `json:"since"`
}

// Tunnels returns who is attached, by name.
func (r *Relay) Tunnels() []Tunnel {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]Tunnel, 0, len(r.sessions))
	for _, a := range r.sessions {
		st := a.s.Stats()
		out = append(out, Tunnel{
			Device: a.dev.Name, ID: a.dev.ID, Relay: a.relay, Rung: a.via.Rung, Path: a.via.Path, Remote: a.via.Remote, Since: a.since.UTC(),
			Carrier: st.Attached, Moves: max(st.Epoch, 1) - 1, RTT: float64(st.RTT.Microseconds()) / 1000, Streams: st.Streams,
			In: st.Received, Out: st.Sent, Unacked: st.Unacked,
		})
	}
	slices.SortFunc(out, func(a, b Tunnel) int { return strings.Compare(a.Device, b.Device) })
	return out
}

// Streams returns the streams between devices, oldest first.
func (r *Relay) Streams() []Stream {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]Stream, 0, len(r.flows))
	for f := range r.flows {
		out = append(out, Stream{r.nameOf(f.From), r.nameOf(f.To), f.Service, f.Datagrams, f.since.UTC()})
	}
	slices.SortFunc(out, func(a, b Stream) int { return a.Since.Compare(b.Since) })
	return out
}

// nameOf returns a device's name, or its ID if it has been removed.
func (r *Relay) nameOf(id device.ID) string {
	if d, ok := r.deps.Registry.Lookup(id); ok {
		return d.Name
	}
	return id.String()
}

// Open counts the streams between devices.
func (r *Relay) Open() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.flows)
}
