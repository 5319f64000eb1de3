package trace

import (
	"bytes"
	"regexp"
)

// Mask finds the secrets in messages: what proves a password, and keys of media. Names, addresses and nonces stay.
type Mask struct{ secrets []*regexp.Regexp }

// NewMask returns the mask. In each expression the group is the secret.
func NewMask() *Mask {
	m := &Mask{}
	for _, e := range []string{
		// RFC 3261 §22: digest; [MS-SIPAE]: NTLM and Kerberos; RFC 7617; RFC 8898.
		`(?im)^(?:proxy-)?authorization[ \t]*:[ \t]*(?:basic|bearer)[ \t]+([^\r\n]+)`,
		`(?i)\b(?:response|rspauth|gssapi-data)[ \t]*=[ \t]*"([^"\r\n]*)"`,
		// RFC 4568, RFC 4566 §5.12, RFC 4567; RFC 8839, and the older ICE of [MS-ICE2], which has it in the candidate.
		`(?im)^a=crypto:[^\r\n]*?inline:([^|; \r\n]+)`,
		`(?im)inline:[^\r\n]*?;[ \t]*inline:([^|; \r\n]+)`,
		`(?im)^k=(?:clear|base64):([^\r\n]+)`,
		`(?im)^a=key-mgmt:[ \t]*\S+[ \t]+([^\r\n]+)`,
		`(?im)^a=ice-pwd:([^\r\n]+)`,
		`(?im)^a=candidate:\S+ \d+ (\S{16,}) (?:UDP|TCP)`,
		// [MS-AVEDGEA]: what the A/V authentication service gives out.
		`(?i)<password>([^<]*)</password>`,
		// MSNFTP: what opens the data connection.
		`(?im)^AuthCookie:[ \t]*([^\r\n]+)`,
	} {
		m.secrets = append(m.secrets, regexp.MustCompile(e))
	}
	return m
}

// Hide returns data with asterisks in the place of its secrets; lengths stay, and so does Content-Length. data is not
// changed.
func (m *Mask) Hide(data []byte) []byte {
	out := data
	for _, re := range m.secrets {
		for _, at := range re.FindAllSubmatchIndex(data, -1) {
			if &out[0] == &data[0] {
				out = bytes.Clone(data)
			}
			for i := at[2]; i < at[3]; i++ {
				out[i] = '*'
			}
		}
	}
	return out
}
