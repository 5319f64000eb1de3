package sipmsg

import (
	"regexp"
	"strconv"
	"strings"
)

var (
	cdata = regexp.MustCompile(`(?s)<send\b[^>]*>.*?<!\[CDATA\[(.*?)\]\]>`)
	// variable is a line whose value is only known to a running scenario.
	variable        = regexp.MustCompile(`(?m)^(\S+[: ]+)?\[\$[^\]]*\][^\r\n]*`)
	requestVariable = regexp.MustCompile(`\[[^\r\n]*`)
	keyword         = regexp.MustCompile(`\[[^\[\]\n]*\]`)
)

// sippMessages returns the messages that a SIPp scenario sends, with its keywords
// replaced by fixed values and line ends as SIPp writes them.
func sippMessages(xml string) []string {
	var out []string
	for _, match := range cdata.FindAllStringSubmatch(xml, -1) {
		var lines []string
		for line := range strings.SplitSeq(strings.TrimSpace(match[1]), "\n") {
			lines = append(lines, strings.TrimSpace(line))
		}
		head, body, _ := strings.Cut(strings.Join(lines, "\r\n"), "\r\n\r\n")
		body = keyword.ReplaceAllStringFunc(body, sippKeyword)
		head = variable.ReplaceAllStringFunc(head, func(line string) string {
			if name, _, ok := strings.Cut(line, ":"); ok && !strings.HasSuffix(line, "SIP/2.0") {
				return sippLast(name)
			}
			return requestVariable.ReplaceAllString(line, "sip:b@192.0.2.1 SIP/2.0")
		})
		head = strings.ReplaceAll(head, "[len]", strconv.Itoa(len(body)))
		out = append(out, keyword.ReplaceAllStringFunc(head, sippKeyword)+"\r\n\r\n"+body)
	}
	return out
}

func sippKeyword(k string) string {
	k = strings.Trim(k, "[]")
	if name, ok := strings.CutPrefix(k, "last_"); ok {
		return sippLast(strings.TrimSuffix(name, ":"))
	}
	k, _, _ = strings.Cut(k, "+")
	switch k {
	case "local_ip", "media_ip":
		return "192.0.2.1"
	case "remote_ip", "server_ip", "remote_host":
		return "198.51.100.1"
	case "local_ip_type", "media_ip_type":
		return "4"
	case "local_port", "remote_port", "media_port", "auto_media_port":
		return "5060"
	case "branch":
		return "z9hG4bK-1-2-3"
	case "transport":
		return "UDP"
	case "cseq", "pid", "call_number", "cseq_number":
		return "1"
	case "service", "field0", "field1":
		return "service"
	case "peer_tag_param":
		return ";tag=1"
	case "routes", "authentication", "next_url", "tdmmap", "timestamp":
		return map[string]string{"routes": "Route: <sip:198.51.100.1;lr>", "next_url": "sip:198.51.100.1",
			"authentication": "Authorization: Digest username=\"a\""}[k]
	case "call_id":
		return "1-2@192.0.2.1"
	}
	return "1"
}

func sippLast(name string) string {
	value := map[string]string{
		"Via": "SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bK-1", "From": "<sip:a@example.org>;tag=1",
		"To": "<sip:b@example.org>", "Call-ID": "1-2@192.0.2.1", "CSeq": "1 INVITE",
		"Record-Route": "<sip:198.51.100.1;lr>", "Contact": "<sip:b@192.0.2.1>",
	}[name]
	if value == "" {
		value = "x"
	}
	return name + ": " + value
}
