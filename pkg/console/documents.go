package console

import (
	"encoding/json"
	"time"
)

// The documents of the API, as far as pages show them; docs/api.md describes all fields.

type statusDoc struct {
	Build struct {
		Version  string `json:"version"`
		Revision string `json:"revision"`
		Platform string `json:"platform"`
	} `json:"build"`
	Uptime float64 `json:"uptime_seconds"`
	State  string  `json:"state"`
	Config struct {
		LoadedAt        time.Time `json:"loaded_at"`
		Error           string    `json:"error"`
		RestartRequired []string  `json:"restart_required"`
	} `json:"config"`
	Services map[string]any `json:"services"`
}

type callsDoc struct {
	Calls []callDoc `json:"calls"`
}

type callDoc struct {
	ID       string     `json:"id"`
	CallID   string     `json:"call_id"`
	From     string     `json:"from"`
	To       string     `json:"to"`
	Networks [2]string  `json:"networks"`
	Caller   string     `json:"caller"`
	Callee   string     `json:"callee"`
	State    string     `json:"state"`
	Started  time.Time  `json:"started"`
	Answered *time.Time `json:"answered"`
	Dialogs  int        `json:"dialogs"`
	Pinholes int        `json:"pinholes"`
}

type h323Doc struct {
	Calls []struct {
		CallID    string     `json:"call_id"`
		Caller    string     `json:"caller"`
		Called    string     `json:"called"`
		From      string     `json:"from"`
		To        string     `json:"to"`
		Started   time.Time  `json:"started"`
		Connected *time.Time `json:"connected"`
		Channels  int        `json:"channels"`
	} `json:"h323_calls"`
}

type pinholesDoc struct {
	Pinholes []pinholeDoc `json:"pinholes"`
}

type pinholeDoc struct {
	ID    uint64    `json:"id"`
	Owner string    `json:"owner"`
	Label string    `json:"label"`
	Kind  string    `json:"kind"`
	Path  string    `json:"path"`
	Age   float64   `json:"age_seconds"`
	Idle  float64   `json:"idle_seconds"`
	Ends  [2]endDoc `json:"ends"`
}

type endDoc struct {
	Network  string   `json:"network"`
	Local    string   `json:"local"`
	Declared string   `json:"declared"`
	Latched  string   `json:"latched"`
	ICE      bool     `json:"ice"`
	Path     string   `json:"path"`
	Why      string   `json:"why"`
	Stats    statsDoc `json:"stats"`
}

type statsDoc struct {
	Packets uint64            `json:"packets"`
	Bytes   uint64            `json:"bytes"`
	Dropped map[string]uint64 `json:"dropped"`
	Lost    int64             `json:"lost"`
	Jitter  float64           `json:"jitter_seconds"`
	RTT     float64           `json:"rtt_seconds"`
	MOS     float64           `json:"mos"`
}

type registrationsDoc struct {
	Registrations []struct {
		AOR       string    `json:"aor"`
		Contact   string    `json:"contact"`
		Network   string    `json:"network"`
		Client    string    `json:"client"`
		Transport string    `json:"transport"`
		Registrar string    `json:"registrar_network"`
		NAT       bool      `json:"nat"`
		Since     time.Time `json:"since"`
		Expires   time.Time `json:"expires"`
	} `json:"registrations"`
}

type turnDoc struct {
	Allocations []struct {
		User        string `json:"user"`
		Client      string `json:"client"`
		Transport   string `json:"transport"`
		Relayed     string `json:"relayed"`
		Protocol    string `json:"protocol"`
		Seconds     int    `json:"seconds"`
		Permissions int    `json:"permissions"`
		Channels    int    `json:"channels"`
		FromClient  uint64 `json:"octets_from_client"`
		FromPeers   uint64 `json:"octets_from_peers"`
	} `json:"turn"`
}

type tunnelsDoc struct {
	Agent *struct {
		ID       string `json:"id"`
		Attached bool   `json:"attached"`
		Relay    string `json:"relay"`
		Rung     string `json:"rung"`
		Sessions int    `json:"sessions"`
		Resumes  int    `json:"resumes"`
		Failures int    `json:"failures"`
		Fault    string `json:"last_error"`
	} `json:"agent"`
	Tunnels []struct {
		Device   string    `json:"device"`
		ID       string    `json:"id"`
		Rung     string    `json:"rung"`
		Remote   string    `json:"remote"`
		Since    time.Time `json:"since"`
		Carrier  bool      `json:"carrier"`
		Moves    int       `json:"moves"`
		RTT      float64   `json:"rtt_ms"`
		Streams  int       `json:"streams"`
		BytesIn  uint64    `json:"bytes_in"`
		BytesOut uint64    `json:"bytes_out"`
	} `json:"tunnels"`
	Streams []struct {
		From    string    `json:"from"`
		To      string    `json:"to"`
		Service string    `json:"service"`
		Since   time.Time `json:"since"`
	} `json:"streams"`
}

type linksDoc struct {
	Links []struct {
		Name       string `json:"name"`
		Interface  string `json:"interface"`
		Peer       string `json:"peer"`
		Up         bool   `json:"up"`
		Carriers   int    `json:"carriers"`
		PacketsIn  uint64 `json:"packets_in"`
		PacketsOut uint64 `json:"packets_out"`
		BytesIn    uint64 `json:"bytes_in"`
		BytesOut   uint64 `json:"bytes_out"`
	} `json:"links"`
}

type portsDoc struct {
	Listeners []struct {
		Protocol string `json:"protocol"`
		Network  string `json:"network"`
		Port     int    `json:"port"`
		Handler  string `json:"handler"`
		Scheme   string `json:"scheme"`
		Key      string `json:"key"`
	} `json:"listeners"`
	Tables []struct {
		Title   string `json:"title"`
		Profile string `json:"profile"`
		Rows    []struct {
			Row       string `json:"row"`
			Component string `json:"component"`
			Ports     string `json:"ports"`
			Protocol  string `json:"protocol"`
			Edge      []struct {
				Network  string `json:"network"`
				Protocol string `json:"protocol"`
				Ports    string `json:"ports"`
				State    string `json:"state"`
				Text     string `json:"text"`
			} `json:"edge"`
		} `json:"rows"`
	} `json:"tables"`
}

type certificatesDoc struct {
	Certificates []struct {
		Name        string    `json:"name"`
		Names       []string  `json:"names"`
		Issuer      string    `json:"issuer"`
		Serial      string    `json:"serial"`
		Algorithm   string    `json:"algorithm"`
		NotBefore   time.Time `json:"not_before"`
		NotAfter    time.Time `json:"not_after"`
		Fingerprint string    `json:"sha256"`
	} `json:"certificates"`
}

type eventsDoc struct {
	Events []struct {
		ID   uint64          `json:"id"`
		Time time.Time       `json:"time"`
		Type string          `json:"type"`
		Data json.RawMessage `json:"data"`
	} `json:"events"`
}
