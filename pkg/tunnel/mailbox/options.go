package mailbox

import (
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"
)

// Config is the section tunnel.mailbox.
type Config struct {
	DeviceQuota   int64         // octets that wait for one device
	IdentityQuota int64         // octets that wait for all devices of one identity; 0: no limit
	TotalQuota    int64         // octets on disk, half-sent ones included
	MaxMessages   int           // messages that wait for one device
	MaxSize       int64         // octets of one message
	TTL           time.Duration // the longest time that a message is kept
	MinFree       int64         // octets of the file system that stay free
}

// Default returns what is used where nothing is configured.
func Default() Config {
	return Config{
		DeviceQuota: 1 << 30, TotalQuota: 16 << 30, MaxMessages: 100_000, MaxSize: 1 << 30,
		TTL: 30 * 24 * time.Hour, MinFree: 256 << 20,
	}
}

// Validate returns all that is wrong.
func (c Config) Validate() error {
	var faults []error
	positive := func(key string, v int64) {
		if v <= 0 {
			faults = append(faults, fmt.Errorf("%s: must be positive", key))
		}
	}
	positive("device_quota", c.DeviceQuota)
	positive("total_quota", c.TotalQuota)
	positive("max_messages", int64(c.MaxMessages))
	positive("max_size", c.MaxSize)
	positive("ttl", int64(c.TTL))
	if c.IdentityQuota < 0 {
		faults = append(faults, errors.New("identity_quota: must not be negative"))
	}
	if c.MinFree < 0 {
		faults = append(faults, errors.New("min_free: must not be negative"))
	}
	return errors.Join(faults...)
}

// Options are what a store is opened with.
type Options struct {
	Config
	// Identity names whom a device belongs to, for IdentityQuota; "" is nobody. Nil: nobody has an identity.
	Identity func(Device) string
	Log      *zap.Logger
}

const (
	maxInline     = 64 << 10 // larger bodies are files
	overhead      = 256      // what a message costs beside its body, for each recipient, in quotas
	maxEpochs     = 1 << 18  // of one sender
	markLife      = 60 * 24 * time.Hour
	partLife      = 3 * 24 * time.Hour // half-sent messages that nobody goes on with
	sweepEvery    = 5 * time.Minute
	ephemeralLife = time.Minute
)
