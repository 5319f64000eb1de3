package oracle

// gosipDeviates lists the messages that gosip reads in another way, and the fields.
// In all of them sipmsg does what the RFC asks.
var gosipDeviates = map[string]string{
	// The rest of the datagram is the body, or none is if it is blank; Content-Length is not looked at.
	"jsip-torture-009.sip":                        "body",
	"jsip-torture-023.sip":                        "body",
	"jsip-torture-027.sip":                        "body",
	"jsip-torture-033.sip":                        "body",
	"jsip-torture-057.sip":                        "body",
	"jsip-torture-179.sip":                        "body",
	"jsip-torture-337.sip":                        "body",
	"jsip-torture-349.sip":                        "body",
	"jsip-torture-373.sip":                        "body",
	"kamailio--dns.sip":                           "body",
	"kamailio--invite00.sip":                      "body",
	"kamailio--invite02.sip":                      "body",
	"kamailio--invite04.sip":                      "body",
	"kamailio--invite6-badbranch-via.sip":         "body",
	"kamailio--message03.sip":                     "body",
	"kamailio--repl1.sip":                         "body",
	"rfc4475-dblreq.dat":                          "body",
	"rfc5118-4.9-ipv4-mapped-ipv6.rfc-length.dat": "body",
	// A fold in front of the semicolon loses the tag.
	"jsip-torture-199.sip": "to-tag",
	"jsip-torture-203.sip": "to-tag",
	"jsip-torture-205.sip": "to-tag",
	"jsip-torture-207.sip": "to-tag",
	"jsip-torture-211.sip": "to-tag",
	"jsip-torture-215.sip": "to-tag",
	"jsip-torture-217.sip": "to-tag",
	"jsip-torture-219.sip": "to-tag",
	"jsip-torture-221.sip": "to-tag",
	"jsip-torture-223.sip": "to-tag",
	// Drops the Via: for a % in its branch, for bracketed IPv6 without a port.
	"rfc4475-esc02.dat":                "branch",
	"rfc5118-4.4-port-unambiguous.dat": "branch",
	// Unescapes, drops From, changes the case of the method, escapes the URI.
	"rfc4475-intmeth.dat": "branch from-tag method uri",
	// Drops From with an http URI.
	"rfc4475-unksm2.dat": "from-tag",
	// Drops folded From, To and Via.
	"rfc4475-wsinv.dat": "branch from-tag to-tag",
}

// sipgoDeviates is the same for sipgo.
var sipgoDeviates = map[string]string{
	// Changes the case of the method.
	"rfc4475-intmeth.dat": "method",
	// Changes the case of the scheme.
	"rfc4475-unkscm.dat": "uri",
	// Blanks around = lose the tag.
	"rfc4475-wsinv.dat": "from-tag to-tag",
}
