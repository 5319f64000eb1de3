package proxydial

import (
	"context"
	"crypto/md5" //nolint:gosec // RFC 7616 §3.2: what most proxies have
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"strings"
	"sync"
)

// digestLogin answers by RFC 7616: MD5 or SHA-256, plain or -sess, qop auth or none (RFC 2069).
type digestLogin struct {
	user, password string
	cnonce         string // for tests; empty: random

	mu    sync.Mutex
	nonce string // the last one, and how often it was used
	count uint32
}

// answer hashes the request's method and uri with the challenge's nonce.
func (l *digestLogin) answer(_ context.Context, c challenge, method, uri string) (string, bool, error) {
	p := c.params
	fn, name, err := digestHash(p["algorithm"])
	if err != nil {
		return "", false, err
	}
	qop, err := digestQOP(p)
	if err != nil {
		return "", false, err
	}
	if p["nonce"] == "" || strings.ContainsAny(p["nonce"]+p["realm"]+p["opaque"], "\r\n\x00") {
		return "", false, errors.New("a challenge without a nonce, or with a line break")
	}
	cnonce := l.cnonce
	if cnonce == "" {
		cnonce = rand.Text()
	}
	nc := fmt.Sprintf("%08x", l.use(p["nonce"]))
	a1 := sum(fn, l.user+":"+p["realm"]+":"+l.password)
	if strings.HasSuffix(strings.ToLower(name), "-sess") {
		a1 = sum(fn, a1+":"+p["nonce"]+":"+cnonce)
	}
	a2 := sum(fn, method+":"+uri)
	response := sum(fn, a1+":"+p["nonce"]+":"+a2)
	if qop != "" {
		response = sum(fn, strings.Join([]string{a1, p["nonce"], nc, cnonce, qop, a2}, ":"))
	}
	user := l.user
	hashed := strings.EqualFold(p["userhash"], "true")
	if hashed {
		user = sum(fn, l.user+":"+p["realm"])
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Digest username=%s, realm=%s, nonce=%s, uri=%s, response=%q", quote(user), quote(p["realm"]), quote(p["nonce"]), quote(uri), response)
	if name != "" {
		fmt.Fprintf(&b, ", algorithm=%s", name)
	}
	if p["opaque"] != "" {
		fmt.Fprintf(&b, ", opaque=%s", quote(p["opaque"]))
	}
	if qop != "" {
		fmt.Fprintf(&b, ", qop=%s, nc=%s, cnonce=%q", qop, nc, cnonce)
	}
	if hashed {
		b.WriteString(", userhash=true")
	}
	return b.String(), false, nil
}

// use counts a use of the nonce, from 1.
func (l *digestLogin) use(nonce string) uint32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.nonce != nonce {
		l.nonce, l.count = nonce, 0
	}
	l.count++
	return l.count
}

// digestHash returns the function of an algorithm, and its name as it is to be repeated.
func digestHash(algorithm string) (func() hash.Hash, string, error) {
	switch strings.ToUpper(algorithm) {
	case "", "MD5", "MD5-SESS":
		return md5.New, algorithm, nil
	case "SHA-256", "SHA-256-SESS":
		return sha256.New, algorithm, nil
	}
	return nil, "", fmt.Errorf("algorithm %q", algorithm)
}

// digestQOP returns the quality of protection: auth, or "" if the challenge says none.
func digestQOP(params map[string]string) (string, error) {
	list, ok := params["qop"]
	if !ok {
		return "", nil
	}
	for _, q := range strings.Split(list, ",") {
		if strings.EqualFold(strings.TrimSpace(q), "auth") {
			return "auth", nil
		}
	}
	return "", fmt.Errorf("qop %q", list)
}

func sum(fn func() hash.Hash, text string) string {
	h := fn()
	h.Write([]byte(text))
	return hex.EncodeToString(h.Sum(nil))
}

// quote writes a quoted string (RFC 9110 §5.6.4).
func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}
