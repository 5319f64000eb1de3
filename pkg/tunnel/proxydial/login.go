package proxydial

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/Azure/go-ntlmssp"
	"go.uber.org/zap"
)

// login is one attempt to log in by one scheme. It belongs to one connection, but for those that answer each
// request anew (Basic, Digest), which do so for all connections to the proxy and may be used concurrently.
type login interface {
	// answer returns the value of Proxy-Authorization that answers c, for a request of method and uri. The proxy's answer
	// to it is final unless more is true: then it is another challenge, on the same connection.
	answer(ctx context.Context, c challenge, method, uri string) (value string, more bool, err error)
}

// The schemes, the strongest first.
const (
	negotiate = "negotiate"
	ntlm      = "ntlm"
	digest    = "digest"
	basic     = "basic"
)

// byConnection tells whether a login is one of the connection, not of a request.
func byConnection(scheme string) bool { return scheme == negotiate || scheme == ntlm }

var errNoScheme = errors.New("the proxy offers no login that there are credentials for")

// begin picks the strongest scheme that is offered and that gives an answer, and returns it with that.
func (d *Dialer) begin(ctx context.Context, p Proxy, offered []challenge, method, uri string) (a attempt, err error) {
	user, password, err := d.credentials(p)
	if err != nil {
		return attempt{}, err
	}
	faults := []error{errNoScheme}
	for _, scheme := range []string{negotiate, ntlm, digest, basic} {
		for _, c := range offered {
			if c.scheme != scheme {
				continue
			}
			l := d.login(p, scheme, user, password)
			if l == nil {
				continue
			}
			value, more, err := l.answer(ctx, c, method, uri)
			if err == nil {
				return attempt{login: l, scheme: scheme, challenge: c, value: value, more: more}, nil
			}
			if ctx.Err() != nil {
				return attempt{}, context.Cause(ctx)
			}
			d.log.Debug("login not usable", zap.Stringer("proxy", p), zap.String("scheme", scheme), zap.Error(err))
			faults = append(faults, fmt.Errorf("%s: %w", scheme, err))
		}
	}
	return attempt{}, errors.Join(faults...)
}

// login returns what logs in by a scheme, nil where credentials or permission are missing.
func (d *Dialer) login(p Proxy, scheme, user, password string) login {
	switch {
	case scheme == negotiate && d.hasKerberos():
		return &kerberosLogin{cfg: d.cfg.Kerberos, user: user, password: password, proxy: p, getenv: d.getenv}
	case user == "":
	case scheme == ntlm && password != "":
		return ntlmLogin{user, password}
	case scheme == digest:
		return &digestLogin{user: user, password: password}
	case scheme == basic && (d.cfg.AllowBasic || p.user != nil && d.cfg.User == ""):
		// A login in the environment's URL is meant for Basic: that is all that it is used for elsewhere.
		if p.Scheme == HTTP {
			d.log.Warn("the proxy is shown the password in clear", zap.Stringer("proxy", p))
		}
		return basicLogin{user, password}
	}
	return nil
}

type basicLogin struct{ user, password string }

// answer is that of RFC 7617.
func (l basicLogin) answer(context.Context, challenge, string, string) (string, bool, error) {
	if strings.Contains(l.user, ":") {
		return "", false, errors.New("a user with a colon")
	}
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(l.user+":"+l.password)), false, nil
}

type ntlmLogin struct{ user, password string }

// answer is the negotiate message (MS-NLMP §2.2.1.1), then the authenticate message to the proxy's challenge.
func (l ntlmLogin) answer(_ context.Context, c challenge, _, _ string) (string, bool, error) {
	if c.token == "" {
		msg, err := ntlmssp.NewNegotiateMessage("", "")
		return "NTLM " + base64.StdEncoding.EncodeToString(msg), true, err
	}
	msg, err := base64.StdEncoding.DecodeString(c.token)
	if err != nil {
		return "", false, fmt.Errorf("challenge: %w", err)
	}
	msg, err = ntlmssp.NewAuthenticateMessage(mendChallenge(msg), l.user, l.password, nil)
	return "NTLM " + base64.StdEncoding.EncodeToString(msg), false, err
}

// mendChallenge mends what squid's ntlm_fake_auth sends and curl takes: it empties a target name and target information
// that lie outside of the message (MS-NLMP §2.2.1.2). Older messages have other things in the place of the latter.
func mendChallenge(msg []byte) []byte {
	const name, info, header = 12, 40, 48
	if len(msg) < info {
		return msg
	}
	msg = append(msg, make([]byte, max(0, header-len(msg)))...)
	for _, at := range []int{name, info} {
		size, offset := binary.LittleEndian.Uint16(msg[at:]), binary.LittleEndian.Uint32(msg[at+4:])
		if uint64(offset)+uint64(size) > uint64(len(msg)) {
			clear(msg[at : at+8])
		}
	}
	return msg
}

// hostOf returns the host of HOST:PORT.
func hostOf(address string) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	return host
}
