package main

import (
	"strconv"
	"strings"
)

// What a row of a document asks of a port, beside the handlers of listeners.
const (
	wantNextHop = "nexthop" // the edge dials it
	wantMedia   = "media"   // opened for each call, never by itself
	wantFile    = "file"    // opened for each file transfer
	wantWeb     = "web"     // HTTPS or PSOM, told apart by server name
	wantTURN    = "turn"
	wantMRAS    = "mras" // the A/V authentication service
	wantGroove  = "groove"
	wantBlock   = "block"
)

// document is the port table of a system, as its maker published it.
type document struct {
	title string
	role  profileName
	rows  []documentRow
}

// documentRow is a row of a table. A leg is "SIDE PROTO PORTS WANT": where the edge meets it.
type documentRow struct {
	no, component, ports, protocol string
	legs                           []string
}

// documents are all tables that roles come from: Microsoft's articles 903056 (Messenger) and 907740 (Groove), the port
// table of OCS 2007 R2, and that of NetMeeting.
func documents() []document {
	return []document{
		{"NetMeeting: ports used", profileNetMeeting, netMeetingRows()},
		{"Windows Messenger and LCS 2005: KB 903056", profileLCS, messengerRows()},
		{"OCS 2007 R2: ports used by servers", profileOCS, append(ocsServerRows(), ocsEdgeRows()...)},
		{"OCS 2007 R2: ports used by clients", profileOCS, ocsClientRows()},
		{"Groove 2007: KB 907740", profileGroove, grooveRows()},
	}
}

func row(no, component, ports, protocol string, legs ...string) documentRow {
	return documentRow{no, component, ports, protocol, legs}
}

func netMeetingRows() []documentRow {
	return []documentRow{
		row("1", "Internet Locator Server", "389", "TCP", "IN tcp 389 ils", "OUT tcp 389 ils"),
		row("2", "User Location Server", "522", "TCP", "IN tcp 522 forward", "OUT tcp 522 forward"),
		row("3", "T.120", "1503", "TCP", "IN tcp 1503 t120", "OUT tcp 1503 t120"),
		row("4", "H.323 call setup", "1720", "TCP", "IN tcp 1720 h323", "OUT tcp 1720 h323"),
		row("5", "Audio call control", "1731", "TCP", "IN tcp 1731 audiocall", "OUT tcp 1731 audiocall"),
		row("6", "H.323 call control", "dynamic", "TCP", "IN tcp 1024-65535 media", "OUT tcp 1024-65535 media"),
		row("7", "H.323 streaming", "dynamic", "RTP/UDP", "IN udp 1024-65535 media", "OUT udp 1024-65535 media"),
	}
}

func messengerRows() []documentRow {
	return []documentRow{
		row("54", "Messenger, LCS", "5060, 5061", "SIP", "IN udp 5060 sip", "IN tcp 5060-5061 sip", "OUT udp 5060 sip", "OUT tcp 5060-5061 sip"),
		row("55", "Messenger: whiteboard, sharing", "1503", "T.120", "IN tcp 1503 t120", "OUT tcp 1503 t120"),
		row("56", "Messenger: audio, video", "dynamic", "RTP/UDP", "IN udp 1024-65535 media", "OUT udp 1024-65535 media"),
		row("57", "Messenger: file transfer", "6891-6900", "TCP", "IN tcp 6891-6900 file", "OUT tcp 6891-6900 file"),
	}
}

func ocsServerRows() []documentRow {
	return []documentRow{
		row("1", "Front End", "5060/5061", "SIP TCP/MTLS", "IN tcp 5060-5061 nexthop", "OUT tcp 5060 block"),
		row("2", "Front End", "443", "HTTPS", "OUT tcp 443 web"),
		row("3", "Front End", "444", "HTTPS", "OUT tcp 444 block"),
		row("4", "Front End", "80", "HTTP", "OUT tcp 80 block"),
		row("5", "Front End", "135", "DCOM/RPC", "OUT tcp 135 block"),
		row("6", "Front End: IM conferencing", "5062", "SIP", "OUT tcp 5062 block"),
		row("7", "Front End: A/V conferencing", "5063", "SIP", "OUT tcp 5063 block"),
		row("8", "Front End: telephony", "5064", "SIP", "OUT tcp 5064 block"),
		row("9", "Front End: app sharing", "5065", "SIP", "OUT tcp 5065 block"),
		row("10", "Front End: QoE agent", "5069", "TCP/MTLS", "OUT tcp 5069 block"),
		row("11", "Front End: Response Group", "5071", "SIP", "OUT tcp 5071 block"),
		row("12", "Front End: Attendant", "5072", "SIP", "OUT tcp 5072 block"),
		row("13", "Front End: Announcement", "5073", "SIP", "OUT tcp 5073 block"),
		row("14", "Front End: Voice Control", "5074", "SIP/TLS", "OUT tcp 5074 block"),
		row("15", "Front End: Live Meeting", "8057", "PSOM/TLS", "OUT tcp 8057 block"),
		row("16", "Front End: Response Group", "8404", "TLS", "OUT tcp 8404 block"),
		row("17", "Front End: media", "49152-65335", "UDP", "IN udp 49152-65335 media"),
		row("18", "Balancer of Front Ends", "5060/5061", "SIP TCP/MTLS", "IN tcp 5060-5061 nexthop", "OUT tcp 5060 block"),
		row("19", "Balancer of Front Ends", "443, 444, 135", "HTTPS, RPC", "OUT tcp 443 web", "OUT tcp 444,135 block"),
		row("20", "Balancer of Front Ends", "5065-5074", "SIP", "OUT tcp 5065,5069,5071-5074 block"),
		row("21", "Communicator Web Access", "80", "HTTP", "OUT tcp 80 block"),
		row("22", "Communicator Web Access", "88, 389, 3268", "Kerberos, LDAP", "OUT tcp 88,389,3268 block"),
		row("23", "Communicator Web Access", "443", "HTTPS", "OUT tcp 443 web"),
		row("24", "Communicator Web Access", "5061", "SIP", "IN tcp 5061 sip"),
		row("25", "Communicator Web Access", "49152-65535", "sharing", "IN udp 49152-65535 media"),
		row("26", "Group Chat", "49152-65335", "SIP/TLS", "OUT tcp 49152-65335 block"),
		row("27", "Group Chat", "443", "HTTPS", "OUT tcp 443 web"),
		row("28", "Group Chat", "8010, 8011, 5041", "TLS", "OUT tcp 8010-8011,5041 block"),
		row("29", "Monitoring, Archiving", "135", "MSMQ/RPC", "OUT tcp 135 block"),
		row("30", "Director", "5060/5061", "SIP", "IN tcp 5060-5061 nexthop", "OUT tcp 5060 block"),
		row("31", "Mediation", "60000-64000", "UDP", "IN udp 60000-64000 media"),
		row("32", "Mediation", "5061", "SIP", "IN tcp 5061 sip"),
		row("33", "Mediation", "5060", "SIP", "IN tcp 5060 sip"),
		row("34", "Reverse proxy", "443", "TCP", "OUT tcp 443 web"),
	}
}

func ocsEdgeRows() []documentRow {
	return []documentRow{
		row("35", "Edge: Access", "5061", "SIP/MTLS", "OUT tcp 5061 sip"),
		row("36", "Edge: A/V authentication", "5062", "SIP/MTLS", "IN tcp 5062 mras"),
		row("37", "Edge: Access", "443", "SIP/TLS", "OUT tcp 443 sip"),
		row("38", "Edge: Web Conferencing", "443", "PSOM/TLS", "OUT tcp 443 web"),
		row("39", "Edge: A/V", "443", "STUN/TCP", "OUT tcp 443 turn"),
		row("40", "Edge: A/V", "3478", "STUN/UDP", "IN udp 3478 turn", "OUT udp 3478 turn"),
		row("41", "Edge: A/V", "50000-59999", "RTP", "OUT udp 50000-59999 media"),
		row("42", "Edge: Web Conferencing", "8057", "PSOM/MTLS", "IN tcp 8057 forward"),
		row("43", "Balancer of Edges, inside", "443, 5061, 5062, 3478", "as above",
			"IN tcp 443 turn", "IN tcp 5061 sip", "IN tcp 5062 mras", "IN udp 3478 turn"),
		row("44", "Balancer of Edges, outside", "443, 5061, 3478", "as above",
			"OUT tcp 443,5061 sip", "OUT tcp 3478 turn", "OUT udp 3478 turn"),
	}
}

func ocsClientRows() []documentRow {
	return []documentRow{
		row("45", "Communicator", "5060, 5061", "SIP", "IN tcp 5060-5061 sip"),
		row("46", "Communicator", "443", "SIP/TLS", "OUT tcp 443 sip"),
		row("47", "Communicator", "1024-65535", "UDP/TCP", "IN udp 1024-65535 media", "OUT udp 1024-65535 media"),
		row("48", "Communicator", "6891-6901", "TCP", "IN tcp 6891-6901 file", "OUT tcp 6891-6901 file"),
		row("49", "Live Meeting", "443", "SIP, PSOM", "OUT tcp 443 sip", "OUT tcp 443 web"),
		row("50", "Live Meeting", "8057", "PSOM", "IN tcp 8057 forward", "OUT tcp 8057 block"),
		row("51", "Live Meeting", "5061", "SIP/TLS", "IN tcp 5061 sip", "OUT tcp 5061 sip"),
		row("52", "Live Meeting", "1024-65535; 6891-6901", "media; file", "IN udp 1024-65535 media", "OUT udp 1024-65535 media",
			"IN tcp 6891-6901 file", "OUT tcp 6891-6901 file"),
		row("53", "Communicator Mobile", "5060, 5061, 443", "SIP", "IN tcp 5060-5061 sip", "OUT tcp 443 sip"),
	}
}

func grooveRows() []documentRow {
	return []documentRow{
		row("1", "Groove, direct or by SOCKS", "2492", "SSTP", "IN tcp 2492 groove", "OUT tcp 2492 groove"),
		row("2", "Groove, by an SSL proxy", "443", "TCP", "OUT tcp 443 groove"),
		row("3", "Groove, by HTTP", "80", "HTTP", "OUT tcp 80 groove"),
	}
}

// leg is one leg of a row.
type leg struct {
	side, proto, text, want string
	ports                   []portSpan
}

type portSpan struct{ first, last uint16 }

// parseLeg reads "SIDE PROTO PORTS WANT". What is malformed has no ports; a test looks for that.
func parseLeg(s string) leg {
	f := strings.Fields(s)
	if len(f) != 4 {
		return leg{}
	}
	l := leg{side: f[0], proto: f[1], text: f[2], want: f[3]}
	for _, part := range strings.Split(f[2], ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		a, err := strconv.ParseUint(first, 10, 16)
		b, err2 := strconv.ParseUint(last, 10, 16)
		if err != nil || err2 != nil || a > b || a == 0 {
			return leg{}
		}
		l.ports = append(l.ports, portSpan{uint16(a), uint16(b)})
	}
	return l
}

// count returns how many ports a leg names.
func (l leg) count() int {
	n := 0
	for _, s := range l.ports {
		n += int(s.last-s.first) + 1
	}
	return n
}
