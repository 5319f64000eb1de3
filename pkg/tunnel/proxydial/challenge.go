package proxydial

import "strings"

// challenge is one way to log in that a proxy offers (RFC 9110 §11.3): a scheme with a token, or with parameters.
type challenge struct {
	scheme string // in small letters
	token  string // token68; empty where there is none
	params map[string]string
}

// maxChallenges bounds what one answer may offer, maxParams what one challenge may hold.
const (
	maxChallenges = 16
	maxParams     = 32
)

// parseChallenges reads the values of Proxy-Authenticate: each holds one challenge or more, separated by commas, which
// also separate parameters. What cannot be read ends the value that it is in; what came before it stands.
func parseChallenges(values []string) []challenge {
	var out []challenge
	for _, v := range values {
		s := lexer{v}
		for len(out) < maxChallenges {
			c, ok := s.challenge()
			if !ok {
				break
			}
			out = append(out, c)
		}
	}
	return out
}

// lexer reads from the front of rest.
type lexer struct{ rest string }

func (s *lexer) challenge() (challenge, bool) {
	s.skip(" \t,")
	name := s.token()
	if name == "" {
		return challenge{}, false
	}
	c := challenge{scheme: strings.ToLower(name), params: map[string]string{}}
	if s.skip(" \t") == 0 {
		return c, true
	}
	if t := s.token68(); t != "" {
		c.token = t
		return c, true
	}
	for len(c.params) < maxParams {
		before := s.rest
		s.skip(" \t,")
		key := s.token()
		s.skip(" \t")
		if key == "" || !strings.HasPrefix(s.rest, "=") {
			s.rest = before // another challenge begins here, or nothing does
			return c, true
		}
		s.rest = s.rest[1:]
		s.skip(" \t")
		value, ok := s.value()
		if !ok {
			return c, true
		}
		c.params[strings.ToLower(key)] = value
	}
	return c, true
}

// skip drops leading bytes of set and says how many.
func (s *lexer) skip(set string) int {
	n := len(s.rest)
	s.rest = strings.TrimLeft(s.rest, set)
	return n - len(s.rest)
}

// token reads a token (RFC 9110 §5.6.2).
func (s *lexer) token() string {
	n := 0
	for n < len(s.rest) && isToken(s.rest[n]) {
		n++
	}
	t := s.rest[:n]
	s.rest = s.rest[n:]
	return t
}

// token68 reads what stands alone up to a comma or the end, as NTLM and Negotiate have it; else it reads nothing.
func (s *lexer) token68() string {
	n := 0
	for n < len(s.rest) && (isAlnum(s.rest[n]) || strings.IndexByte("-._~+/", s.rest[n]) >= 0) {
		n++
	}
	for n > 0 && n < len(s.rest) && s.rest[n] == '=' {
		n++
	}
	end := strings.TrimLeft(s.rest[n:], " \t")
	if n == 0 || end != "" && end[0] != ',' {
		return ""
	}
	t := s.rest[:n]
	s.rest = end
	return t
}

// value reads a token or a quoted string (RFC 9110 §5.6.4).
func (s *lexer) value() (string, bool) {
	if !strings.HasPrefix(s.rest, `"`) {
		t := s.token()
		return t, t != ""
	}
	var b strings.Builder
	for i := 1; i < len(s.rest); i++ {
		switch c := s.rest[i]; {
		case c == '"':
			s.rest = s.rest[i+1:]
			return b.String(), true
		case c == '\\' && i+1 < len(s.rest):
			i++
			b.WriteByte(s.rest[i])
		default:
			b.WriteByte(c)
		}
	}
	s.rest = ""
	return "", false
}

func isToken(c byte) bool { return isAlnum(c) || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0 }

func isAlnum(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}
