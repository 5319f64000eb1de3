package mailbox

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"
)

// Config is the section tunnel.mailbox.
type Config struct {
	Total       Size          `yaml:"total" jsonschema:"oneof_type=string;integer,default=16GiB" jsonschema_description:"octets on disk, half-sent messages included, such as 16GiB; 0 = no mailboxes"`
	PerDevice   Size          `yaml:"per_device" jsonschema:"oneof_type=string;integer,default=1GiB" jsonschema_description:"octets that may wait for one device"`
	PerGroup    Size          `yaml:"per_group" jsonschema:"oneof_type=string;integer,default=0" jsonschema_description:"octets that may wait for all devices together whose first group is the same; 0 = no limit"`
	MaxMessages int           `yaml:"max_messages" jsonschema:"minimum=1,default=100000" jsonschema_description:"messages that may wait for one device"`
	MaxSize     Size          `yaml:"max_size" jsonschema:"oneof_type=string;integer,default=1GiB" jsonschema_description:"the longest message"`
	TTL         time.Duration `yaml:"ttl" jsonschema_description:"the longest time that a message is kept; default 720h"`
	MinFree     Size          `yaml:"min_free" jsonschema:"oneof_type=string;integer,default=256MiB" jsonschema_description:"what stays free of the file system: nothing is taken that would use it"`
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

// Size is a number of octets, written "700", "10MB" or "1GiB".
type Size int64

// UnmarshalText reads a number with or without a unit: kB, MB, GB (powers of 1000), KiB, MiB, GiB (of 1024).
func (s *Size) UnmarshalText(b []byte) error {
	text := strings.TrimSpace(string(b))
	number := strings.TrimRight(text, "kKMGiB ")
	unit, ok := map[string]int64{
		"": 1, "B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30,
	}[strings.TrimSpace(text[len(number):])]
	n, err := strconv.ParseInt(number, 10, 64)
	if !ok || err != nil || n < 0 || n > (1<<60)/unit {
		return fmt.Errorf("%q is not a size such as 500MB or 1GiB", b)
	}
	*s = Size(n * unit)
	return nil
}

// MarshalText writes the number with the largest binary unit that divides it.
func (s Size) MarshalText() ([]byte, error) {
	for _, u := range []struct {
		n    Size
		name string
	}{{1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if s != 0 && s%u.n == 0 {
			return fmt.Appendf(nil, "%d%s", s/u.n, u.name), nil
		}
	}
	return strconv.AppendInt(nil, int64(s), 10), nil
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
