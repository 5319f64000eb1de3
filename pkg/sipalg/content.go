package sipalg

import (
	"bytes"
	"encoding/base64"
	"io"
	"mime/quotedprintable"
	"net/netip"
	"strings"
	"time"

	"edged.dev/edged/pkg/sipalg/flow"
	"edged.dev/edged/pkg/sipalg/imfilter"
	"edged.dev/edged/pkg/sipalg/sdp"
	"edged.dev/edged/pkg/sipalg/sipmsg"
)

// Content is what a message carries that is no session description, or the text in a header field that
// stands for it: the first words of a conversation travel as ms-text-format in its INVITE.
type Content struct {
	// Method is the request's, also where Status says that it is the response to it.
	Method string
	// Status is 0 for a request.
	Status int
	// Type is the media type as written, Body the body; those of a header field without its base64. Both
	// are valid during the call only.
	Type, Body []byte
	// Header tells that it came in a header field, not as the body or a part of it.
	Header bool
	CallID string
	// From and To are the URIs of these header fields.
	From, To string
	// Signed tells that the sender's leg carries Microsoft's signatures (NTLM, Kerberos, TLS-DSK).
	Signed bool
	// Sender and Receiver are the neighbours of the edge on either side.
	Sender, Receiver ContentParty
}

// ContentParty is one neighbour.
type ContentParty struct {
	Network string
	// Addr is the host, as seen; zero if it is not known.
	Addr netip.Addr
	// Local is the edge's own bound address on that leg.
	Local netip.Addr
	// Trusted tells that it is a configured server, which speaks for other hosts.
	Trusted bool
}

// Verdict is what an editor makes of a content. The zero value lets it pass as it is.
type Verdict struct {
	// Body replaces the content if it is not nil.
	Body []byte
	// Type replaces the media type of a replaced body or header field, not of a part; empty: it stays.
	Type string
	// Refuse is the status with which a request is refused, 0 for none. It is ignored on a signed leg, where
	// the answer would be lost: the editor denies in its own way there.
	Refuse int
	// Warning is a value of that header field for the refusal, e.g. `309 edge "..."`.
	Warning string
	// EchoBody makes the refusal carry the request's body, as some clients need it to understand.
	EchoBody bool
	// Reason labels the drop counter; it comes from a small fixed set.
	Reason string
}

// ContentEditor looks at contents on their way. It is called under the server's lock: it must not block and
// must not call back. It may open pinholes.
type ContentEditor interface {
	Edit(now time.Time, c Content) Verdict
	// Ended tells that the last dialog with a Call-ID is over; more than once perhaps, and also for calls that were
	// never edited.
	Ended(callID string)
	// Lost tells that the connection is lost by which contents of a call between two URIs came.
	Lost(callID, one, other string)
}

// refusal is what a refused content adds to the answer that its request gets at once.
type refusal struct {
	tx    uint64
	lines []string
	body  []byte
}

// contentLeg is one message's way through the editor.
type contentLeg struct {
	from, to flow.Flow // to.Local may not be known: then l is
	l        *local
	status   int
	signed   bool
	verdict  Verdict // the refusal, or the last one that replaced something
}

// carries tells whether a method's messages are looked at.
func carries(method string) bool {
	return method == "MESSAGE" || method == "INVITE" || method == "INFO" || method == "SERVICE"
}

// editRequestContent shows the request at hand to the editor. body is what the body has become already, nil if
// nothing; so is the result. What a refusal says is left in the core.
func (c *Core) editRequestContent(t *tx, l *local, dest flow.Flow, body []byte) (edited []byte, status int, reason string) {
	if !c.looks(t.method) {
		return body, 0, ""
	}
	leg := contentLeg{from: t.up, to: dest, l: l, signed: c.signedLeg(t.up)}
	edited = c.editContent(t.method, &leg, body)
	if leg.verdict.Refuse == 0 {
		return edited, 0, ""
	}
	r := refusal{tx: t.id}
	if leg.verdict.Warning != "" {
		r.lines = append(r.lines, "Warning: "+leg.verdict.Warning)
	}
	if leg.verdict.EchoBody && len(c.m.Body()) > 0 {
		r.lines = append(r.lines, "Content-Type: "+string(unfold(c.m.ContentType())))
		r.body = bytes.Clone(c.m.Body())
	}
	c.denied = r
	return nil, leg.verdict.Refuse, "Not Acceptable Content"
}

// editResponseContent shows the response at hand, by f to the request t, to the editor.
func (c *Core) editResponseContent(t *tx, f flow.Flow, up *local, body []byte) []byte {
	if !c.looks(t.method) {
		return body
	}
	leg := contentLeg{from: f, to: t.up, l: up, status: c.m.Status(), signed: c.signedLeg(f)}
	return c.editContent(t.method, &leg, body)
}

// editContent shows each content of the message at hand to the editor, and edits the header fields.
func (c *Core) editContent(method string, leg *contentLeg, body []byte) []byte {
	shown := false
	show := func(mediaType, text []byte, header bool) (Verdict, bool) {
		if leg.verdict.Refuse != 0 {
			return Verdict{}, false
		}
		if !shown && c.contents != nil {
			shown = true
			c.noteCall(leg.from)
			c.noteCall(leg.to)
		}
		v := c.judgeContent(Content{
			Method: method, Status: leg.status, Type: mediaType, Body: text, Header: header, CallID: string(c.m.CallID()),
			From: string(c.m.From().URI), To: string(c.m.To().URI), Signed: leg.signed,
			Sender: c.party(leg.from, c.localOf(leg.from)), Receiver: c.party(leg.to, leg.l),
		})
		if v.Refuse != 0 {
			leg.verdict = v
		}
		return v, v.Refuse == 0 && v.Body != nil
	}
	c.editTextHeaders(show)
	return c.editBodies(body, show)
}

// looks tells whether somebody wants to see contents, and the message at hand, of a transaction with this method,
// has any.
func (c *Core) looks(method string) bool {
	if c.contents == nil && c.urls == nil || !carries(method) {
		return false
	}
	if len(c.m.Body()) > 0 && !sdp.IsSDP(c.bodyType()) {
		return true
	}
	for i := range c.m.Len() {
		if isTextHeader(c.m.Header(i)) {
			return true
		}
	}
	return false
}

func isTextHeader(h sipmsg.Header) bool {
	return h.ID == sipmsg.HeaderOther && bytes.EqualFold(h.Name, []byte("ms-text-format"))
}

// judgeContent asks the editor and then, of what is left, the filter of links.
func (c *Core) judgeContent(in Content) (v Verdict) {
	if c.contents != nil {
		v = c.contents.Edit(c.now, in)
		if v.Reason != "" {
			c.drop(v.Reason)
		}
		if v.Refuse != 0 && !in.Signed && in.Status == 0 {
			return v
		}
		v.Refuse = 0
	}
	if v.Body != nil {
		in.Body = v.Body
	}
	if v.Type != "" {
		in.Type = []byte(v.Type)
	}
	if c.urls == nil || !c.urls.From(in.Sender.Network) {
		return v
	}
	return c.filterLinks(in, v)
}

// filterLinks does what sip.im_urls says to a content of which v is said already.
func (c *Core) filterLinks(in Content, v Verdict) Verdict {
	defused, links := c.urls.Look(in.Type, in.Body)
	if links == 0 {
		return v
	}
	switch c.urls.Mode() {
	case imfilter.Defuse:
		c.drop("im_url_defused")
		v.Body = defused
	case imfilter.Block:
		c.drop("im_url_blocked")
		if in.Signed || in.Status != 0 { // bodies are not signed
			v.Body = imfilter.Notice(in.Type)
			break
		}
		v.Refuse, v.Warning = 606, `309 edge "Links are not allowed in messages"`
	default:
		c.drop("im_url_seen")
	}
	return v
}

// showFunc shows one content; ok tells that the verdict replaces it.
type showFunc func(mediaType, text []byte, header bool) (v Verdict, ok bool)

// editTextHeaders shows the ms-text-format header fields:
//
//	ms-text-format: text/plain; charset=UTF-8;msgr=...;ms-body=BASE64
func (c *Core) editTextHeaders(show showFunc) {
	for i := range c.m.Len() {
		h := c.m.Header(i)
		if !isTextHeader(h) {
			continue
		}
		for at, typed := 0, false; ; {
			mediaType, coded := nextText(h.Value, at)
			if coded == nil {
				break
			}
			at = offsetIn(h.Value, coded) + len(coded)
			v, edited := show(mediaType, decodeLoosely(coded), true)
			if alone := lastItem(mediaType); !edited && len(alone) < len(mediaType) {
				v, edited = show(alone, decodeLoosely(coded), true)
			}
			if !edited {
				continue
			}
			c.ed.ReplaceSpan(coded, base64.StdEncoding.AppendEncode(nil, v.Body))
			if v.Type != "" && !typed {
				typed = true
				c.ed.ReplaceSpan(mediaType, []byte(v.Type))
			}
		}
	}
}

// nextText finds the next text of an ms-text-format value from offset at on, nil if there is none: what follows
// "ms-body=", wherever it stands, for clients look no closer. The media type is all that stands before it.
func nextText(value []byte, at int) (mediaType, coded []byte) {
	for ; at < len(value); at++ {
		const name = "ms-body"
		if len(value)-at <= len(name) || !bytes.EqualFold(value[at:at+len(name)], []byte(name)) {
			continue
		}
		rest := bytes.TrimLeft(value[at+len(name):], " \t\r\n")
		if len(rest) == 0 || rest[0] != '=' {
			continue
		}
		coded = bytes.Trim(bytes.TrimLeft(rest[1:], " \t\r\n"), `"`)
		if end := bytes.IndexAny(coded, `";,`); end >= 0 {
			coded = coded[:end]
		}
		if len(coded) > 0 {
			return bytes.TrimRight(value[:at], "; ,\t\r\n"), coded
		}
	}
	return nil, nil
}

// lastItem returns the last one of a list's items.
func lastItem(list []byte) []byte {
	return bytes.TrimLeft(list[bytes.LastIndexByte(list, ',')+1:], " \t\r\n")
}

// editBodies shows the body, or each part of a multipart, that is no session description.
func (c *Core) editBodies(body []byte, show showFunc) []byte {
	mediaType, from := c.bodyType(), body
	if from == nil {
		from = c.m.Body()
	}
	if len(from) == 0 || sdp.IsSDP(mediaType) {
		return body
	}
	if v, ok := c.m.Find(sipmsg.ContentEncoding); ok && !bytes.EqualFold(v, []byte("identity")) {
		c.drop("content_encoded") // it is shown all the same: clients pass over this header field
	}
	if !sdp.IsMultipart(mediaType) {
		v, edited := show(mediaType, from, false)
		if !edited {
			return body
		}
		if v.Type != "" && len(mediaType) > 0 {
			c.ed.ReplaceSpan(mediaType, []byte(v.Type))
		}
		return v.Body
	}
	out, changed, err := sdp.EditParts(nil, mediaType, from, func(p sdp.Part) []byte { return c.editPart(p, show) })
	switch {
	case err != nil:
		c.drop("content_malformed")
	case changed:
		return out
	}
	return body
}

// editPart shows a part, its transfer encoding (RFC 2045 §6) undone, and returns what is to stand there instead, encoded
// again; nil if it stays.
func (c *Core) editPart(p sdp.Part, show showFunc) []byte {
	switch strings.ToLower(string(p.Encoding)) {
	case "", "7bit", "8bit", "binary":
		if v, edited := show(p.ContentType, p.Body, false); edited {
			return v.Body
		}
	case "base64":
		if v, edited := show(p.ContentType, decodeLoosely(p.Body), false); edited {
			return base64.StdEncoding.AppendEncode(nil, v.Body)
		}
	case "quoted-printable":
		text, err := io.ReadAll(quotedprintable.NewReader(bytes.NewReader(p.Body)))
		if err != nil {
			c.drop("content_malformed")
			return nil
		}
		if v, edited := show(p.ContentType, text, false); edited {
			var b bytes.Buffer
			w := quotedprintable.NewWriter(&b)
			_, _ = w.Write(v.Body) // a buffer takes all
			_ = w.Close()
			return b.Bytes()
		}
	default: // clients that do not know it either read on
		c.drop("content_encoded")
		if v, edited := show(p.ContentType, p.Body, false); edited {
			return v.Body
		}
	}
	return nil
}

// party describes the neighbour at the other end of a flow; l is the edge's own end, if it has one.
func (c *Core) party(f flow.Flow, l *local) ContentParty {
	p := ContentParty{Network: f.Network, Addr: f.Remote.Addr().Unmap(), Local: f.Local.Addr().Unmap()}
	p.Trusted = c.servers[p.Addr]
	if l != nil && !p.Local.IsValid() {
		p.Local = l.bind.Addr()
	}
	return p
}

// decodeLoosely decodes base64 as clients do: whatever is no digit of it is passed over.
func decodeLoosely(coded []byte) []byte {
	digits := make([]byte, 0, len(coded))
	for _, b := range coded {
		switch {
		case b >= 'A' && b <= 'Z', b >= 'a' && b <= 'z', b >= '0' && b <= '9', b == '+', b == '/':
			digits = append(digits, b)
		}
	}
	if len(digits)%4 == 1 {
		digits = digits[:len(digits)-1]
	}
	out, _ := base64.RawStdEncoding.AppendDecode(nil, digits) // nothing is left that could be wrong
	return out
}

// offsetIn returns where sub, a part of b, begins in it.
func offsetIn(b, sub []byte) int { return cap(b) - cap(sub) }

// unfold writes a header field's value in one line.
func unfold(v []byte) []byte {
	if bytes.IndexByte(v, '\n') < 0 {
		return v
	}
	return bytes.Join(bytes.Fields(v), []byte{' '})
}

// refusalOf takes what the refusal of t's content says.
func (c *Core) refusalOf(t *tx) (r refusal) {
	if c.denied.tx == t.id {
		r, c.denied = c.denied, refusal{}
	}
	return r
}

// appendResponse is [sipmsg.AppendResponse] with what the refusal adds.
func (r refusal) appendResponse(dst []byte, req *sipmsg.Message, status int, reason string, toTag []byte) []byte {
	dst = sipmsg.AppendResponse(dst, req, status, reason, toTag, r.lines...)
	if len(r.body) == 0 {
		return dst
	}
	dst = bytes.TrimSuffix(dst, []byte("0\r\n\r\n")) // Content-Length comes last
	dst = append(appendUint(dst, uint64(len(r.body))), "\r\n\r\n"...)
	return append(dst, r.body...)
}
