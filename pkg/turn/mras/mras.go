// Package mras is the A/V authentication service of Office Communications Server's edge ([MS-AVEDGEA]): it answers
// requests for credentials of the media relay, and has the answers of another one name this relay in place of its own. It
// is bytes in, bytes out: SIP, which carries both, and MS-TURN, which takes the credentials, are others'.
//
//	SIP SERVICE, <request>  ─► Issuer.Answer  ─► 200, <response>: user name, password, relay
//	200 of another, <response> ─► Issuer.Rewrite ─► <response>: its user name and password, this relay ─► MS-TURN learns them
package mras

import (
	"bytes"
	"encoding/base64"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"edged.dev/edged/pkg/turn/timelimited"
)

// MediaType is that of requests and answers.
const MediaType = "application/msrtc-media-relay-auth+xml"

const (
	namespace = "http://schemas.microsoft.com/2006/09/sip/mrasp"
	// maxBody bounds what is read ([MS-AVEDGEA] lets an identity alone have 64 K characters).
	maxBody = 64 << 10
	maxID   = 64
	// maxUser bounds the user in a name, which has the time before.
	maxUser = 480
	// maxBlob bounds the names and passwords of another service, in base64.
	maxBlob = 684
)

// Errors of requests and answers.
var (
	// ErrMalformed says that it is no request, or no answer with credentials.
	ErrMalformed = errors.New("malformed")
	// ErrTooLarge says that it is not read for its size.
	ErrTooLarge = errors.New("too large")
)

// Is tells whether a Content-Type, with its parameters, is that of requests and answers.
func Is(contentType string) bool {
	name, _, _ := strings.Cut(contentType, ";")
	return strings.EqualFold(strings.TrimSpace(name), MediaType)
}

// Issuer makes answers. It may be used concurrently.
type Issuer struct {
	cfg    Config
	secret string
}

// New returns an issuer of credentials that are made with a secret of the media relay.
func New(cfg Config, secret string) *Issuer { return &Issuer{cfg, secret} }

// request is a <request>; an element that is not there leaves its zero value.
type request struct {
	XMLName     xml.Name `xml:"request"`
	ID          string   `xml:"requestID,attr"`
	To          string   `xml:"to,attr"`
	From        string   `xml:"from,attr"`
	Credentials *struct {
		ID       string `xml:"credentialsRequestID,attr"`
		Identity string `xml:"identity"`
		Location string `xml:"location"`
		Duration uint32 `xml:"duration"` // minutes
	} `xml:"credentialsRequest"`
}

// Answer returns the answer to a <request>, with credentials for as long as it asks and the configuration allows. The
// error wraps ErrMalformed or ErrTooLarge.
func (s *Issuer) Answer(body []byte, now time.Time) (answer []byte, user string, err error) {
	if len(body) > maxBody {
		return nil, "", ErrTooLarge
	}
	var r request
	if err := xml.Unmarshal(body, &r); err != nil {
		return nil, "", fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	c := r.Credentials
	if c == nil || r.XMLName.Space != namespace || r.ID == "" || len(r.ID) > maxID || c.ID == "" || len(c.ID) > maxID {
		return nil, "", ErrMalformed
	}
	user = strings.TrimPrefix(strings.TrimSpace(c.Identity), "sip:")
	if user == "" || len(user) > maxUser {
		return nil, "", fmt.Errorf("%w: identity", ErrMalformed)
	}
	life := s.cfg.Duration
	if asked := time.Duration(c.Duration) * time.Minute; asked > 0 && asked < life {
		life = asked
	}
	name := timelimited.Name(user, now.Add(life))
	host, location := s.cfg.relay(c.Location)
	return s.compose(&r, name, int(life/time.Minute), host, location), user, nil
}

// compose writes the answer.
func (s *Issuer) compose(r *request, name string, minutes int, host, location string) []byte {
	var b bytes.Buffer
	text := func(v string) string {
		var e strings.Builder
		_ = xml.EscapeText(&e, []byte(v)) // a Builder takes all
		return e.String()
	}
	coded := base64.StdEncoding.EncodeToString
	fmt.Fprintf(&b, `<?xml version="1.0"?>`+"\r\n"+`<response xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" requestID="%s" version="1.0" serverVersion="2.0" to="%s" from="%s" reasonPhrase="OK" xmlns="%s">`,
		text(r.ID), text(r.To), text(r.From), namespace)
	fmt.Fprintf(&b, `<credentialsResponse credentialsRequestID="%s"><credentials><username>%s</username><password>%s</password><duration>%d</duration></credentials>`,
		text(r.Credentials.ID), coded([]byte(name)), coded(timelimited.Password(s.secret, name)), minutes)
	fmt.Fprintf(&b, `<mediaRelayList><mediaRelay><location>%s</location><hostName>%s</hostName><udpPort>%d</udpPort><tcpPort>%d</tcpPort></mediaRelay></mediaRelayList></credentialsResponse></response>`,
		location, text(host), s.cfg.UDPPort, s.cfg.TCPPort)
	return b.Bytes()
}

// Credentials are those of another service.
type Credentials struct {
	Name     string
	Password []byte
	Until    time.Time
}

// place is where a value of a <mediaRelay> stands.
type place struct {
	from, to int
	relay    int // which one's
	element  string
}

// Rewrite returns the answer of another service with this relay in place of each of its relays, and the credentials in it.
// All other octets stay. The error wraps ErrMalformed or ErrTooLarge; then the answer is one that brings no credentials.
func (s *Issuer) Rewrite(body []byte, now time.Time) ([]byte, Credentials, error) {
	if len(body) > maxBody {
		return nil, Credentials{}, ErrTooLarge
	}
	a, err := read(body)
	if err != nil {
		return nil, Credentials{}, err
	}
	c, err := a.credentials(now, s.cfg.Duration)
	if err != nil || len(a.places) == 0 {
		return nil, Credentials{}, errors.Join(ErrMalformed, err)
	}
	out, at := make([]byte, 0, len(body)+64), 0
	for _, p := range a.places {
		out = append(out, body[at:p.from]...)
		at = p.to
		switch p.element {
		case "udpPort":
			out = strconv.AppendUint(out, uint64(s.cfg.UDPPort), 10)
		case "tcpPort":
			out = strconv.AppendUint(out, uint64(s.cfg.TCPPort), 10)
		default:
			host, _ := s.cfg.relay(a.locations[p.relay])
			out = append(out, host...) // a name or an address, as Validate has seen: nothing to be escaped
		}
	}
	return append(out, body[at:]...), c, nil
}

// answer is what is read of a <response>.
type answer struct {
	name, password, duration string
	locations                []string // of each <mediaRelay>
	places                   []place  // in order
}

const responsePath = "/response/credentialsResponse"

// read finds the values of an answer.
func read(body []byte) (a answer, err error) {
	d := xml.NewDecoder(bytes.NewReader(body))
	path, begin := "", 0
	for {
		token, err := d.Token()
		switch {
		case errors.Is(err, io.EOF) && path == "":
			return a, nil
		case err != nil:
			return a, fmt.Errorf("%w: %w", ErrMalformed, err)
		}
		switch t := token.(type) {
		case xml.StartElement:
			path += "/" + t.Name.Local
			if len(path) > maxBlob { // deeper than any answer is
				return a, ErrMalformed
			}
			if path == responsePath+"/mediaRelayList/mediaRelay" {
				a.locations = append(a.locations, "")
			}
			begin = int(d.InputOffset())
		case xml.EndElement:
			end := int(d.InputOffset())
			if close := bytes.LastIndex(body[begin:end], []byte("</")); close >= 0 {
				a.take(path, body, begin, begin+close)
			}
			path = path[:strings.LastIndexByte(path, '/')]
			begin = end
		}
	}
}

// take notes the value of the element at a path, which stands in body[from:to].
func (a *answer) take(path string, body []byte, from, to int) {
	value, relay := strings.TrimSpace(string(body[from:to])), len(a.locations)-1
	name, ours := strings.CutPrefix(path, responsePath)
	if !ours {
		return
	}
	switch name {
	case "/credentials/username":
		a.name = value
	case "/credentials/password":
		a.password = value
	case "/credentials/duration":
		a.duration = value
	case "/mediaRelayList/mediaRelay/location":
		a.locations[relay] = value
	case "/mediaRelayList/mediaRelay/hostName", "/mediaRelayList/mediaRelay/udpPort", "/mediaRelayList/mediaRelay/tcpPort":
		a.places = append(a.places, place{from, to, relay, name[strings.LastIndexByte(name, '/')+1:]})
	}
}

// credentials decodes those of an answer; they end when it says, and after most at the latest.
func (a *answer) credentials(now time.Time, most time.Duration) (Credentials, error) {
	if len(a.name) > maxBlob || len(a.password) > maxBlob {
		return Credentials{}, ErrTooLarge
	}
	name, err := base64.StdEncoding.DecodeString(a.name)
	if err != nil || len(name) == 0 {
		return Credentials{}, fmt.Errorf("%w: user name", ErrMalformed)
	}
	password, err := base64.StdEncoding.DecodeString(a.password)
	if err != nil || len(password) == 0 {
		return Credentials{}, fmt.Errorf("%w: password", ErrMalformed)
	}
	life := most
	if minutes, err := strconv.ParseUint(a.duration, 10, 32); err == nil && minutes > 0 {
		life = min(most, time.Duration(minutes)*time.Minute)
	}
	return Credentials{string(name), password, now.Add(life)}, nil
}
