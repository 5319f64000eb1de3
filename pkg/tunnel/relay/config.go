package relay

import (
	"context"
	"time"

	"edged.dev/edged/pkg/tunnel/bulk"
	"edged.dev/edged/pkg/tunnel/device"
	"edged.dev/edged/pkg/tunnel/mux"
)

// Limits bound what one device may ask for.
type Limits struct {
	Streams   int   `yaml:"streams" jsonschema:"minimum=1,maximum=65536,default=1024" jsonschema_description:"streams that a device may have open"`
	Opens     int   `yaml:"opens_per_second" jsonschema:"minimum=0,default=200" jsonschema_description:"streams that a device may open a second; 0 = no limit; live"`
	Bandwidth int64 `yaml:"bandwidth" jsonschema:"minimum=0,default=0" jsonschema_description:"octets a second that are carried for a device, both ways together; 0 = no limit; live"`
	Sessions  int   `yaml:"sessions" jsonschema:"minimum=1,default=20000" jsonschema_description:"devices that may be attached"`
}

// DefaultLimits returns the defaults.
func DefaultLimits() Limits { return Limits{Streams: 1024, Opens: 200, Sessions: 20000} }

// Rules are what may change while streams live.
type Rules struct {
	Policy device.Policy
	Limits Limits
}

// Upstream gives the session with another relay that this one dials.
type Upstream interface {
	// Current returns nil while there is none. It may be called concurrently.
	Current() *mux.Session
}

// Deps are what a relay works with.
type Deps struct {
	// Registry is who is admitted; the relay reads it at each attach and each opening.
	Registry *device.Registry
	// Store has the tokens by which devices enrol themselves; nil: nobody does.
	Store *device.Store
	// Enrolled is told of each new device, which must be in the registry when it returns.
	Enrolled func(device.Device) error
	// Peers are relays that may pass streams on to this one.
	Peers map[device.ID]bool
	// Upstreams are relays that are asked for devices which are not attached here.
	Upstreams []Upstream
	// Other serves streams of the kinds that are not the relay's own, until they end; nil: they are refused.
	Other func(ctx context.Context, head []byte, s *mux.Stream, peer device.ID)
	// Joiner splices what leaves the sessions; nil: nothing does.
	Joiner bulk.Joiner
	// Deny tells of a device whether it is shut out although it is known; it is asked like Registry. nil: none is.
	Deny func(device.Device) bool
	// Mux tunes sessions; its limits of streams are the relay's.
	Mux mux.Config
}

// Via says by which way a device has come.
type Via struct {
	Rung   string // e.g. tls
	Path   string // e.g. direct
	Remote string // its address as seen here
}

const (
	// openTime is how long a device may take to accept an offer.
	openTime = 20 * time.Second
	// awayTime is how long a device, or another relay, may be without a connection until it counts as offline for a new
	// stream. It notices within six seconds that a connection is dead.
	awayTime = 3 * time.Second
	// enrolTime is how long an enrolment may take.
	enrolTime = 15 * time.Second
)
