// Package content looks at files while they pass. It is given a copy of what is on the wire, decrypts it with the keys of
// the invitation, finds out what kind of file it is, and has a virus scanner read it. It moves nothing and changes
// nothing: whoever moves the file asks, and holds its end back until the answer is there (package msnftp).
//
//	wire ─► RC4 ─► plaintext ─┬─► HMAC ─────────────► is it what the receiver will get?   MAC
//	                          ├─► first 512 octets ─► a denied kind of file?              Write
//	                          └─► scanner ──────────► clamd (INSTREAM), ICAP (RFC 3507)   Verdict
//
// No file is kept, in memory or anywhere else: it is streamed to the scanner, which slows the transfer down to what
// it can take.
package content

import (
	"context"
	"crypto/hmac"
	"crypto/rc4"  //nolint:gosec // the clients' cipher
	"crypto/sha1" //nolint:gosec // the clients' digest
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"net/url"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole"
)

// What becomes of a file that cannot be scanned.
const (
	OnErrorDeny = "deny"
	OnErrorPass = "pass"
)

// Config is the section "content" of the file transfer's.
type Config struct {
	// Verify has the sender's MAC checked, also where nothing else is to be looked at.
	Verify bool `yaml:"verify" json:"verify,omitempty" jsonschema:"default=false,description=check the sender's MAC also where nothing else is looked at"`
	// Types are the kinds of files that are denied whatever their names, by what they begin with: a kind or a
	// group of kinds, see [Kinds].
	Types []string `yaml:"types" json:"types,omitempty" jsonschema:"description=kinds of files (exe; elf; zip; ...) or groups of them (executable; archive; document; media) that are refused whatever their names; by what they begin with"`
	// Scanner is "clamd://HOST:PORT", "clamd:///run/clamav/clamd.ctl", or "icap://HOST:PORT/SERVICE"; empty for none.
	Scanner string `yaml:"scanner" json:"scanner,omitempty" jsonschema:"description=virus scanner: clamd://HOST:PORT or clamd:///SOCKET or icap://HOST:PORT/SERVICE"`
	// OnError says what becomes of a file that the scanner did not judge: OnErrorDeny or OnErrorPass.
	OnError string `yaml:"on_error" json:"on_error,omitempty" jsonschema:"enum=deny,enum=pass,default=deny,description=what becomes of files that the scanner did not judge"`
	// Timeout bounds each wait for the scanner, 1s-10m.
	Timeout time.Duration `yaml:"timeout" json:"timeout,omitempty" jsonschema:"type=string,default=30s,description=longest wait for the scanner; 1s-10m"`
}

// DefaultConfig returns the section as it is when nothing is written.
func DefaultConfig() Config { return Config{OnError: OnErrorDeny, Timeout: 30 * time.Second} }

// Enabled tells whether anything is to be looked at.
func (c Config) Enabled() bool { return c.Verify || len(c.Types) > 0 || c.Scanner != "" }

// Validate returns every fault, joined; keys are relative to the section.
func (c Config) Validate() error {
	var errs []error
	fault := func(bad bool, key, format string, args ...any) {
		if bad {
			errs = append(errs, pinhole.Fault{Key: key, Text: fmt.Sprintf(format, args...)})
		}
	}
	for i, t := range c.Types {
		fault(!slices.Contains(Kinds(), t), fmt.Sprintf("types[%d]", i), "%q is none of %s", t, strings.Join(Kinds(), ", "))
	}
	if c.Scanner != "" {
		_, err := parseScanner(c.Scanner)
		fault(err != nil, "scanner", "%v", err)
	}
	fault(c.OnError != OnErrorDeny && c.OnError != OnErrorPass, "on_error", "%q is not deny or pass", c.OnError)
	fault(c.Timeout < time.Second || c.Timeout > 10*time.Minute, "timeout", "%v is not in 1s-10m", c.Timeout)
	return errors.Join(errs...)
}

// address is where a scanner is, and how it is spoken to.
type address struct {
	scheme, network, host, path string
}

func parseScanner(s string) (address, error) {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return address{}, fmt.Errorf("%q is not a URL", s)
	case u.Scheme != "clamd" && u.Scheme != "icap":
		return address{}, fmt.Errorf("%q does not begin with clamd:// or icap://", s)
	case u.Scheme == "clamd" && u.Host == "" && len(u.Path) > 1:
		return address{"clamd", "unix", u.Path, ""}, nil
	case u.Hostname() == "":
		return address{}, fmt.Errorf("%q names no host", s)
	case u.Scheme == "icap" && len(u.Path) < 2:
		return address{}, fmt.Errorf("%q names no service, e.g. icap://192.0.2.9:1344/avscan", s)
	}
	host := u.Host
	if u.Port() == "" {
		host += map[string]string{"clamd": ":3310", "icap": ":1344"}[u.Scheme]
	}
	return address{u.Scheme, "tcp", host, strings.TrimPrefix(u.EscapedPath(), "/")}, nil
}

// Reasons of a [Denied], as labels of a metric.
const (
	ReasonType    = "type"
	ReasonVirus   = "virus"
	ReasonMAC     = "mac"
	ReasonScanner = "scanner"
)

// Denied says why a file must not pass.
type Denied struct {
	// Reason is one of the Reason constants.
	Reason string
	// Name is the kind of file, what the scanner calls the virus, or what went wrong.
	Name string
}

// Error returns the reason and the name.
func (d *Denied) Error() string { return d.Reason + ": " + d.Name }

// File is what is known of a file before it comes.
type File struct {
	Name string
	Size int64
	// EncryptionKey and HashKey are those of the invitation, decoded from base64; nil for a file that
	// is sent as it is, without a MAC.
	EncryptionKey, HashKey []byte
}

// Checker begins checks. Its methods may be called concurrently.
type Checker struct {
	cfg     Config
	scanner address
	log     *zap.Logger
}

// New returns a checker after validating cfg.
func New(cfg Config, log *zap.Logger) (*Checker, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	c := &Checker{cfg: cfg, log: log}
	if cfg.Scanner != "" {
		var err error
		if c.scanner, err = parseScanner(cfg.Scanner); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// Check looks at one file. Its methods must not be called concurrently.
type Check struct {
	checker *Checker
	file    File
	cipher  *rc4.Cipher
	mac     hash.Hash
	head    []byte
	judged  bool   // the kind of file has been
	plain   []byte // what was decrypted last
	scan    scan   // nil if nobody scans it
}

// scan is one file on its way to a scanner.
type scan interface {
	// Write gives it more of the file.
	Write(b []byte) (int, error)
	// result returns what was found in the whole file, "" for nothing.
	result() (string, error)
}

// keySize is how much of the digest of a key is the key, in octets.
const keySize = 16

// Begin starts to look at a file; the scanner is let go when ctx ends. It returns a *Denied if the scanner cannot be
// had and the file must not pass without.
func (c *Checker) Begin(ctx context.Context, f File) (*Check, error) {
	k := &Check{checker: c, file: f}
	if f.EncryptionKey != nil {
		sum := sha1.Sum(f.EncryptionKey) //nolint:gosec // the clients' digest
		var err error
		if k.cipher, err = rc4.NewCipher(sum[:keySize]); err != nil { //nolint:gosec // see above
			return nil, fmt.Errorf("content: %w", err)
		}
	}
	if f.HashKey != nil {
		sum := sha1.Sum(f.HashKey) //nolint:gosec // the clients' digest
		k.mac = hmac.New(sha1.New, sum[:keySize])
	}
	var err error
	switch c.scanner.scheme {
	case "clamd":
		k.scan, err = beginClamd(ctx, c.scanner, c.cfg.Timeout)
	case "icap":
		k.scan, err = beginICAP(ctx, c.scanner, c.cfg.Timeout, f)
	}
	if err != nil {
		if err := k.unscanned(err); err != nil {
			return nil, err
		}
	}
	return k, nil
}

// unscanned decides on a file that the scanner does not judge.
func (k *Check) unscanned(err error) error {
	k.scan = nil
	k.checker.log.Warn("file not scanned", zap.String("file", k.file.Name), zap.String("scanner", k.checker.cfg.Scanner), zap.Error(err))
	if k.checker.cfg.OnError == OnErrorPass {
		return nil
	}
	return &Denied{ReasonScanner, err.Error()}
}

// Write takes the next octets of the file as they are on the wire. It returns a *Denied once the file must not pass.
func (k *Check) Write(b []byte) (int, error) {
	plain := b
	if k.cipher != nil {
		k.plain = slices.Grow(k.plain[:0], len(b))[:len(b)]
		plain = k.plain
		k.cipher.XORKeyStream(plain, b)
	}
	if k.mac != nil {
		k.mac.Write(plain)
	}
	if !k.judged {
		k.head = append(k.head, plain[:min(len(plain), headSize-len(k.head))]...)
		if len(k.head) == headSize {
			if err := k.judge(); err != nil {
				return 0, err
			}
		}
	}
	if k.scan != nil {
		if _, err := k.scan.Write(plain); err != nil {
			if err := k.found(); err != nil {
				return 0, err
			}
		}
	}
	return len(b), nil
}

// judge looks at the beginning of the file.
func (k *Check) judge() error {
	k.judged = true
	kind := sniff(k.head)
	k.head = nil
	if kind.name != "" && slices.ContainsFunc(k.checker.cfg.Types, kind.is) {
		return &Denied{ReasonType, kind.name}
	}
	return nil
}

// found asks the scanner for its result.
func (k *Check) found() error {
	virus, err := k.scan.result()
	if err != nil {
		return k.unscanned(err)
	}
	k.scan = nil
	if virus != "" {
		return &Denied{ReasonVirus, virus}
	}
	return nil
}

// Verdict judges the whole file: a *Denied if it must not pass.
func (k *Check) Verdict() error {
	if !k.judged {
		if err := k.judge(); err != nil {
			return err
		}
	}
	if k.scan != nil {
		return k.found()
	}
	return nil
}

// MAC judges the MAC that the sender tells, in base64. Another one says that the receiver decrypts something else
// than was looked at here.
func (k *Check) MAC(sum string) error {
	if k.mac == nil {
		return nil
	}
	told, err := base64.StdEncoding.DecodeString(sum)
	if err != nil || !hmac.Equal(told, k.mac.Sum(nil)) {
		return &Denied{ReasonMAC, "does not fit the file"}
	}
	return nil
}
