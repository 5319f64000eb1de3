package turn

import (
	"crypto/md5" //nolint:gosec // the key of long-term credentials (RFC 8489 §9.2.2)
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"edged.dev/edged/pkg/turn/timelimited"
)

// hashedPrefix begins what stands for a password: the key itself, MD5(name:realm:password) in hexadecimal.
const hashedPrefix = "md5:"

// credentials knows the users: static ones, and the secrets of time-limited ones. It is not changed once made.
type credentials struct {
	realm   string
	keys    map[string][]byte
	secrets []string
	// strict has time-limited names end what they have allocated, too.
	strict bool
}

// newCredentials takes what users and secrets there are; passwords may be hashed. Errors name the user, never the password.
func newCredentials(realm string, users map[string]string, secrets []string, strict bool) (*credentials, error) {
	c := &credentials{realm: realm, keys: make(map[string][]byte, len(users)), secrets: secrets, strict: strict}
	for name, password := range users {
		key, err := keyOf(name, realm, password)
		if err != nil {
			return nil, fmt.Errorf("user %q: %w", name, err)
		}
		c.keys[name] = key
	}
	return c, nil
}

func keyOf(name, realm, password string) ([]byte, error) {
	text, hashed := strings.CutPrefix(password, hashedPrefix)
	if !hashed {
		return longTermKey(name, realm, password), nil
	}
	key, err := hex.DecodeString(text)
	if err != nil || len(key) != md5.Size {
		return nil, fmt.Errorf("what follows %q is not 32 hexadecimal digits", hashedPrefix)
	}
	return key, nil
}

// longTermKey is MD5(name:realm:password) (RFC 8489 §9.2.2).
func longTermKey(name, realm, password string) []byte {
	sum := md5.Sum([]byte(name + ":" + realm + ":" + password)) //nolint:gosec // as above
	return sum[:]
}

// candidate is a key that a name may have signed with, and the user whose quota it counts for.
type candidate struct {
	key  []byte
	user string
}

// lookup returns the keys to try for a name; none if nobody has it, or its time is over where that counts.
func (c *credentials) lookup(name string, m method, now time.Time) []candidate {
	if key, ok := c.keys[name]; ok {
		return []candidate{{key, name}}
	}
	if len(c.secrets) == 0 {
		return nil
	}
	until, user, ok := timelimited.Parse(name)
	if !ok || now.After(until) && (c.strict || m == allocate) {
		return nil
	}
	var out []candidate
	for _, s := range c.secrets {
		out = append(out, candidate{longTermKey(name, c.realm, restPassword(s, name)), user})
	}
	return out
}

func restPassword(secret, name string) string {
	return base64.StdEncoding.EncodeToString(timelimited.Password(secret, name))
}

// Credential makes a time-limited name and password with a secret that the server has: the user may allocate until
// then. An empty user makes a name that is the time alone.
func Credential(secret, user string, until time.Time) (name, password string) {
	name = timelimited.Name(user, until)
	return name, restPassword(secret, name)
}

// ParseUsers reads the lines NAME:PASSWORD or NAME:md5:KEY of a users file; empty lines and those that begin with # do
// not count. Errors name the line, never what stands in it.
func ParseUsers(text string) (map[string]string, error) {
	users := map[string]string{}
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		name, password, ok := strings.Cut(line, ":")
		if !ok || name == "" || password == "" || len(name) > maxUsername {
			return nil, fmt.Errorf("line %d is not NAME:PASSWORD", n)
		}
		if _, twice := users[name]; twice {
			return nil, fmt.Errorf("line %d names a user a second time", n)
		}
		users[name] = password
	}
	return users, nil
}

// ParseSecrets reads the lines of a secret file, the newest secret first; empty lines and those that begin with # do not count.
func ParseSecrets(text string) (secrets []string, err error) {
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if len(secrets) == maxSecrets {
			return nil, fmt.Errorf("line %d: more than %d secrets", n, maxSecrets)
		}
		secrets = append(secrets, line)
	}
	return secrets, nil
}

const (
	maxUsername = 513 // octets, RFC 8489 §14.3
	// maxSecrets bounds the work for one name that nobody knows.
	maxSecrets = 8
)
