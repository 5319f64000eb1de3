package mailbox

import (
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole"
)

// Config is the section tunnel.mailbox.
type Config struct {
	Total       pinhole.Size  `yaml:"total" jsonschema:"oneof_type=string;integer,default=16GiB" jsonschema_description:"octets on disk, half-sent messages included, such as 16GiB; 0 = no mailboxes"`
	PerDevice   pinhole.Size  `yaml:"per_device" jsonschema:"oneof_type=string;integer,default=1GiB" jsonschema_description:"octets that may wait for one device"`
	PerGroup    pinhole.Size  `yaml:"per_group" jsonschema:"oneof_type=string;integer,default=0" jsonschema_description:"octets that may wait for all devices together whose first group is the same; 0 = no limit"`
	MaxMessages int           `yaml:"max_messages" jsonschema:"minimum=1,default=100000" jsonschema_description:"messages that may wait for one device"`
	MaxSize     pinhole.Size  `yaml:"max_size" jsonschema:"oneof_type=string;integer,default=1GiB" jsonschema_description:"the longest message"`
	TTL         time.Duration `yaml:"ttl" jsonschema_description:"the longest time that a message is kept; default 720h"`
	MinFree     pinhole.Size  `yaml:"min_free" jsonschema:"oneof_type=string;integer,default=256MiB" jsonschema_description:"what stays free of the file system: nothing is taken that would use it"`
}

// Default returns what is used where nothing is configured.
func Default() Config {
	return Config{
		PerDevice: 1 << 30, Total: 16 << 30, MaxMessages: 100_000, MaxSize: 1 << 30,
		TTL: 30 * 24 * time.Hour, MinFree: 256 << 20,
	}
}

// maxTTL is the longest lifetime: senders' numbers must be remembered for longer.
const maxTTL = markLife / 2

// Validate returns all faults, each "key: what is wrong", joined.
func (c Config) Validate() error {
	var faults []error
	for _, n := range []struct {
		key   string
		value int64
	}{{"per_device", int64(c.PerDevice)}, {"max_messages", int64(c.MaxMessages)}, {"max_size", int64(c.MaxSize)}} {
		if n.value <= 0 {
			faults = append(faults, fmt.Errorf("%s: must be positive", n.key))
		}
	}
	if c.TTL < time.Second || c.TTL > maxTTL {
		faults = append(faults, fmt.Errorf("ttl: %s is not within 1s-%s", c.TTL, maxTTL))
	}
	return errors.Join(faults...)
}

// Options are what a store is opened with.
type Options struct {
	Config
	// Group names what a device belongs to, for PerGroup; "" is nothing. Nil: no device has a group. It is asked when something
	// begins to wait for the device.
	Group func(Device) string
	Log   *zap.Logger
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
