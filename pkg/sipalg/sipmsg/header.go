package sipmsg

// HeaderID names a header field that the edge knows; compact forms have the same
// id (RFC 3261 §7.3.3, and the IANA registry).
type HeaderID uint8

const (
	HeaderOther HeaderID = iota
	// HeaderVia has a prefix because [Via] is the type of its elements.
	HeaderVia
	From
	To
	CallID
	CSeq
	Contact
	Route
	RecordRoute
	MaxForwards
	ContentLength
	ContentType
	ContentEncoding
	ContentDisposition
	Expires
	Require
	ProxyRequire
	Supported
	Unsupported
	Allow
	Accept
	UserAgent
	Server
	Path
	ServiceRoute
	Authorization
	ProxyAuthorization
	WWWAuthenticate
	ProxyAuthenticate
	AuthenticationInfo
	ProxyAuthenticationInfo
	SessionExpires
	MinSE
	MinExpires
	ReferTo
	ReferredBy
	Replaces
	Event
	AllowEvents
	SubscriptionState
	RAck
	RSeq
	Timestamp
	Warning
	RetryAfter
	Date
	Subject
	Reason
	Identity
	PAssertedIdentity
	PPreferredIdentity

	numHeaders
)

// headerName returns the long form in lower case.
func headerName(id HeaderID) string {
	return [numHeaders]string{
		HeaderVia:               "via",
		From:                    "from",
		To:                      "to",
		CallID:                  "call-id",
		CSeq:                    "cseq",
		Contact:                 "contact",
		Route:                   "route",
		RecordRoute:             "record-route",
		MaxForwards:             "max-forwards",
		ContentLength:           "content-length",
		ContentType:             "content-type",
		ContentEncoding:         "content-encoding",
		ContentDisposition:      "content-disposition",
		Expires:                 "expires",
		Require:                 "require",
		ProxyRequire:            "proxy-require",
		Supported:               "supported",
		Unsupported:             "unsupported",
		Allow:                   "allow",
		Accept:                  "accept",
		UserAgent:               "user-agent",
		Server:                  "server",
		Path:                    "path",
		ServiceRoute:            "service-route",
		Authorization:           "authorization",
		ProxyAuthorization:      "proxy-authorization",
		WWWAuthenticate:         "www-authenticate",
		ProxyAuthenticate:       "proxy-authenticate",
		AuthenticationInfo:      "authentication-info",
		ProxyAuthenticationInfo: "proxy-authentication-info",
		SessionExpires:          "session-expires",
		MinSE:                   "min-se",
		MinExpires:              "min-expires",
		ReferTo:                 "refer-to",
		ReferredBy:              "referred-by",
		Replaces:                "replaces",
		Event:                   "event",
		AllowEvents:             "allow-events",
		SubscriptionState:       "subscription-state",
		RAck:                    "rack",
		RSeq:                    "rseq",
		Timestamp:               "timestamp",
		Warning:                 "warning",
		RetryAfter:              "retry-after",
		Date:                    "date",
		Subject:                 "subject",
		Reason:                  "reason",
		Identity:                "identity",
		PAssertedIdentity:       "p-asserted-identity",
		PPreferredIdentity:      "p-preferred-identity",
	}[id]
}

// String returns the long form in lower case, "" for HeaderOther.
func (id HeaderID) String() string {
	if id >= numHeaders {
		return ""
	}
	return headerName(id)
}

// key spreads the known names: length, first and last letter tell them apart.
func key(n int, first, last byte) uint32 {
	return uint32(n)<<16 | uint32(first|0x20)<<8 | uint32(last|0x20)
}

// classify finds the id of a name in any case.
func classify(name []byte) HeaderID {
	n := len(name)
	switch n {
	case 0:
		return HeaderOther
	case 1:
		return compactForm(name[0] | 0x20)
	}
	id := candidate(key(n, name[0], name[n-1]))
	if id == HeaderOther || !isName(name, headerName(id)) {
		return HeaderOther
	}
	return id
}

// isName compares a token with a name in lower case. Among the characters of a token only capital letters
// become others of a name with the bit of lower case set.
func isName(token []byte, name string) bool {
	if len(token) != len(name) {
		return false
	}
	for i := range token {
		if token[i]|0x20 != name[i] {
			return false
		}
	}
	return true
}

func compactForm(c byte) HeaderID {
	switch c {
	case 'b':
		return ReferredBy
	case 'c':
		return ContentType
	case 'e':
		return ContentEncoding
	case 'f':
		return From
	case 'i':
		return CallID
	case 'k':
		return Supported
	case 'l':
		return ContentLength
	case 'm':
		return Contact
	case 'o':
		return Event
	case 'r':
		return ReferTo
	case 's':
		return Subject
	case 't':
		return To
	case 'u':
		return AllowEvents
	case 'v':
		return HeaderVia
	case 'x':
		return SessionExpires
	case 'y':
		return Identity
	}
	return HeaderOther
}

// candidate is the only known name with this key; the numbers are key's.
//
//nolint:funlen // a table, as a switch because the compiler searches it by halves
func candidate(k uint32) HeaderID {
	switch k {
	case 3<<16 | 'v'<<8 | 'a':
		return HeaderVia
	case 4<<16 | 'f'<<8 | 'm':
		return From
	case 2<<16 | 't'<<8 | 'o':
		return To
	case 7<<16 | 'c'<<8 | 'd':
		return CallID
	case 4<<16 | 'c'<<8 | 'q':
		return CSeq
	case 7<<16 | 'c'<<8 | 't':
		return Contact
	case 5<<16 | 'r'<<8 | 'e':
		return Route
	case 12<<16 | 'r'<<8 | 'e':
		return RecordRoute
	case 12<<16 | 'm'<<8 | 's':
		return MaxForwards
	case 14<<16 | 'c'<<8 | 'h':
		return ContentLength
	case 12<<16 | 'c'<<8 | 'e':
		return ContentType
	case 16<<16 | 'c'<<8 | 'g':
		return ContentEncoding
	case 19<<16 | 'c'<<8 | 'n':
		return ContentDisposition
	case 7<<16 | 'e'<<8 | 's':
		return Expires
	case 7<<16 | 'r'<<8 | 'e':
		return Require
	case 13<<16 | 'p'<<8 | 'e':
		return ProxyRequire
	case 9<<16 | 's'<<8 | 'd':
		return Supported
	case 11<<16 | 'u'<<8 | 'd':
		return Unsupported
	case 5<<16 | 'a'<<8 | 'w':
		return Allow
	case 6<<16 | 'a'<<8 | 't':
		return Accept
	case 10<<16 | 'u'<<8 | 't':
		return UserAgent
	case 6<<16 | 's'<<8 | 'r':
		return Server
	case 4<<16 | 'p'<<8 | 'h':
		return Path
	case 13<<16 | 's'<<8 | 'e':
		return ServiceRoute
	case 13<<16 | 'a'<<8 | 'n':
		return Authorization
	case 19<<16 | 'p'<<8 | 'n':
		return ProxyAuthorization
	case 16<<16 | 'w'<<8 | 'e':
		return WWWAuthenticate
	case 18<<16 | 'p'<<8 | 'e':
		return ProxyAuthenticate
	case 19<<16 | 'a'<<8 | 'o':
		return AuthenticationInfo
	case 25<<16 | 'p'<<8 | 'o':
		return ProxyAuthenticationInfo
	case 15<<16 | 's'<<8 | 's':
		return SessionExpires
	case 6<<16 | 'm'<<8 | 'e':
		return MinSE
	case 11<<16 | 'm'<<8 | 's':
		return MinExpires
	case 8<<16 | 'r'<<8 | 'o':
		return ReferTo
	case 11<<16 | 'r'<<8 | 'y':
		return ReferredBy
	case 8<<16 | 'r'<<8 | 's':
		return Replaces
	case 5<<16 | 'e'<<8 | 't':
		return Event
	case 12<<16 | 'a'<<8 | 's':
		return AllowEvents
	case 18<<16 | 's'<<8 | 'e':
		return SubscriptionState
	case 4<<16 | 'r'<<8 | 'k':
		return RAck
	case 4<<16 | 'r'<<8 | 'q':
		return RSeq
	case 9<<16 | 't'<<8 | 'p':
		return Timestamp
	case 7<<16 | 'w'<<8 | 'g':
		return Warning
	case 11<<16 | 'r'<<8 | 'r':
		return RetryAfter
	case 4<<16 | 'd'<<8 | 'e':
		return Date
	case 7<<16 | 's'<<8 | 't':
		return Subject
	case 6<<16 | 'r'<<8 | 'n':
		return Reason
	case 8<<16 | 'i'<<8 | 'y':
		return Identity
	case 19<<16 | 'p'<<8 | 'y':
		return PAssertedIdentity
	case 20<<16 | 'p'<<8 | 'y':
		return PPreferredIdentity
	}
	return HeaderOther
}
