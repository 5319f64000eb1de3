package sipmsg

import "errors"

var errParam = errors.New("bad parameter")

// param is one ";name=value". Value is empty and stands behind the name for a
// parameter without "=", so that an Editor can insert there.
type param struct {
	name, value []byte
	hasValue    bool
	// bad is set on a syntax error; the rest of the list was not read.
	bad bool
}

// nextParam reads the parameter at or behind b[i]. It returns the index behind it,
// or -1 at the end of the list. Blanks around ";" and "=" are legal (RFC 3261
// §25.1 SEMI, EQUAL). Empty parameters (";;") are skipped, empty tells so.
func nextParam(b []byte, i int) (p param, next int, empty bool) {
	for {
		i = skipLWS(b, i)
		if i == len(b) {
			return p, -1, empty
		}
		if b[i] != ';' {
			break
		}
		i = skipLWS(b, i+1)
		if i == len(b) || b[i] == ';' {
			empty = true
			continue
		}
		break
	}
	end := skipToken(b, i)
	p.name = b[i:end]
	if end == i {
		p.bad = true
		return p, -1, empty
	}
	p.value = b[end:end]
	i = skipLWS(b, end)
	if i < len(b) && b[i] == '=' {
		p.hasValue = true
		i = skipLWS(b, i+1)
		end = valueEnd(b, i)
		if end < 0 {
			p.bad = true
			return p, -1, empty
		}
		p.value = b[i:end]
		i = skipLWS(b, end)
	}
	if i < len(b) && b[i] != ';' {
		p.bad = true
		return p, -1, empty
	}
	return p, i, empty
}

// valueEnd finds the end of a gen-value: quoted-string, or everything up to a
// blank or ";". Characters that no token may have are let through, as an IPv6
// address is in "received=2001:db8::1" (RFC 5118 §4.5).
func valueEnd(b []byte, i int) int {
	if i < len(b) && b[i] == '"' {
		return skipQuoted(b, i)
	}
	for i < len(b) && classes[b[i]]&classValueEnd == 0 {
		i++
	}
	return i
}

// Param finds the parameter name, in any case, in a list ";a=b;c". The value is as
// on the wire, a quoted-string with its quotes; for a parameter without "=" it is
// empty. Reading stops at the first syntax error.
func Param(params []byte, name string) (value []byte, ok bool) {
	p, ok := findParam(params, name)
	return p.value, ok
}

func findParam(params []byte, name string) (param, bool) {
	for i := 0; i >= 0 && i < len(params); {
		p, next, _ := nextParam(params, i)
		if p.name == nil || p.bad {
			return param{}, false
		}
		if equalFold(p.name, name) {
			return p, true
		}
		i = next
	}
	return param{}, false
}

// checkParams checks a whole list; empty parameters are an error when strict.
func checkParams(b []byte, strict bool) error {
	for i := 0; i < len(b); {
		p, next, empty := nextParam(b, i)
		if p.bad || empty && strict {
			return errParam
		}
		if next < 0 {
			return nil
		}
		i = next
	}
	return nil
}
