package ils

import "strings"

const (
	// maxNames bounds the names of one entry.
	maxNames = 4
	// maxNameLen bounds a name, in octets.
	maxNameLen = 256
)

// foldName brings a name into the form in which names are compared.
func foldName(n string) string {
	if len(n) > 4*maxNameLen {
		return ""
	}
	return strings.ToLower(strings.TrimSpace(n))
}

// commonName returns the value of the first cn of a distinguished name, "" if there is none. NetMeeting's
// names are no proper ones ("c=-,o=Microsoft,cn=user@example.org,objectClass=rtPerson"); LDAPv2's quotes and
// semicolons (RFC 1779) and LDAPv3's escapes (RFC 4514) are understood.
func commonName(dn []byte) string {
	for rest := string(dn[:min(len(dn), 4*maxNameLen)]); rest != ""; {
		var rdn string
		rdn, rest = cutRDN(rest)
		typ, value, ok := strings.Cut(rdn, "=")
		if ok && strings.EqualFold(strings.TrimSpace(typ), "cn") {
			return unescape(strings.TrimSpace(value))
		}
	}
	return ""
}

// cutRDN splits before the first separator that is neither escaped nor quoted.
func cutRDN(dn string) (first, rest string) {
	quoted := false
	for i := 0; i < len(dn); i++ {
		switch c := dn[i]; {
		case c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case (c == ',' || c == ';' || c == '+') && !quoted:
			return dn[:i], dn[i+1:]
		}
	}
	return dn, ""
}

// unescape resolves \, \XX and enclosing quotes.
func unescape(v string) string {
	if len(v) >= 2 && v[0] == '"' && v[len(v)-1] == '"' {
		v = v[1 : len(v)-1]
	}
	if !strings.Contains(v, `\`) {
		return v
	}
	var b strings.Builder
	for i := 0; i < len(v); i++ {
		if v[i] != '\\' || i+1 == len(v) {
			b.WriteByte(v[i])
			continue
		}
		hi, ok := unhex(v[i+1])
		if ok && i+2 < len(v) {
			if lo, ok := unhex(v[i+2]); ok {
				b.WriteByte(hi<<4 | lo)
				i += 2
				continue
			}
		}
		i++
		b.WriteByte(v[i])
	}
	return b.String()
}

func unhex(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10, true
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}

// isILSName tells whether a distinguished name lies in a directory of calls: one of its parts is an
// objectClass of such a directory.
func isILSName(dn []byte) bool {
	for rest := string(dn[:min(len(dn), 4*maxNameLen)]); rest != ""; {
		var rdn string
		rdn, rest = cutRDN(rest)
		typ, value, ok := strings.Cut(rdn, "=")
		if ok && strings.EqualFold(strings.TrimSpace(typ), "objectclass") && isILSClass([]byte(strings.TrimSpace(value))) {
			return true
		}
	}
	return false
}
