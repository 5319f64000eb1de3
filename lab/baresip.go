//go:build lab

package lab

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// modules are the baresip modules that a phone loads; menu answers the commands.
var modules = []string{"stdio", "g711", "aufile", "aubridge", "sndfile", "srtp", "dtls_srtp", "stun", "ice"}

// PhoneConfig describes a baresip.
type PhoneConfig struct {
	User      string
	Domain    string // example.org if empty
	Hz        int    // the tone that it speaks
	Proxy     string // outbound proxy, e.g. "10.77.1.1:5060"; empty: none
	Transport string // udp (default), tcp, tls
	Register  bool
	Password  string
	MediaEnc  string // "", srtp-mand, dtls_srtp
	ICE       bool
	V6        bool
	Port      int    // of SIP, 5070 if 0
	CAFile    string // trusted with TLS
	Manual    bool   // does not answer by itself
}

// Phone is a running baresip under control of the test.
type Phone struct {
	PhoneConfig
	Host *Host
	dir  string
	proc *Proc
	ctrl net.Conn

	mu     sync.Mutex
	events []Event
}

// Event is what baresip reports on its control connection.
type Event struct {
	Event  bool   `json:"event"`
	Type   string `json:"type"`
	Class  string `json:"class"`
	Param  string `json:"param"`
	PeerID string `json:"peeruri"`
	OK     bool   `json:"ok"`
	Data   string `json:"data"`
}

// Phone starts a baresip on h, and waits until it registered if it is to.
func (h *Host) Phone(t testing.TB, c PhoneConfig) *Phone {
	t.Helper()
	p := &Phone{PhoneConfig: c, Host: h}
	if p.Domain == "" {
		p.Domain = "example.org"
	}
	if p.Port == 0 {
		p.Port = 5070
	}
	p.dir = filepath.Join(h.dir, "phone-"+h.Name+"-"+c.User)
	must(t, "phone", p.configure())
	argv := []string{"baresip", "-f", p.dir}
	if p.V6 {
		argv = append(argv, "-6")
	} else {
		argv = append(argv, "-4")
	}
	p.proc = h.Start(t, "baresip-"+h.Name+"-"+c.User, argv...)
	p.connect(t)
	if p.Register {
		p.proc.Logged(t, 15*time.Second, "registered successfully") // the event may come before our connection
	}
	return p
}

func (p *Phone) ip() netip.Addr {
	if p.V6 {
		return p.Host.IP6
	}
	return p.Host.IP
}

func (p *Phone) configure() error {
	if err := os.MkdirAll(filepath.Join(p.dir, "dump"), 0o755); err != nil {
		return err
	}
	if err := writeWAV(filepath.Join(p.dir, "tone.wav"), tone(p.Hz, 60*time.Second)); err != nil {
		return err
	}
	for name, text := range map[string]string{"config": p.config(), "accounts": p.account(), "contacts": ""} {
		if err := os.WriteFile(filepath.Join(p.dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (p *Phone) config() string {
	var b strings.Builder
	fmt.Fprintf(&b, "poll_method epoll\nsip_listen %v\nsip_trans_def %s\n", netip.AddrPortFrom(p.ip(), uint16(p.Port)), p.transport())
	if p.CAFile != "" {
		fmt.Fprintf(&b, "sip_cafile %s\n", p.CAFile)
	}
	fmt.Fprintf(&b, "call_local_timeout 60\ncall_max_calls 8\naudio_path /usr/share/baresip\n")
	fmt.Fprintf(&b, "audio_source aufile,%s/tone.wav\naudio_player aubridge,%s\naudio_alert aubridge,alert\n", p.dir, p.User)
	fmt.Fprintf(&b, "ausrc_srate %d\nauplay_srate %d\naudio_txmode poll\n", rate, rate)
	fmt.Fprintf(&b, "rtp_ports 20000-20100\nrtcp_mux no\nrtp_timeout 0\nmodule_path /usr/lib/baresip/modules\n")
	for _, m := range modules {
		fmt.Fprintf(&b, "module %s.so\n", m)
	}
	fmt.Fprintf(&b, "module_tmp uuid.so\nmodule_tmp account.so\nmodule_app menu.so\nmodule_app ctrl_tcp.so\n")
	fmt.Fprintf(&b, "ctrl_tcp_listen 127.0.0.1:4444\nsnd_path %s/dump\n", p.dir)
	return b.String()
}

func (p *Phone) transport() string {
	if p.Transport == "" {
		return "udp"
	}
	return p.Transport
}

func (p *Phone) account() string {
	s := fmt.Sprintf("<sip:%s@%s>;audio_codecs=PCMU/8000/1", p.User, p.Domain)
	if p.transport() != "udp" {
		s = fmt.Sprintf("<sip:%s@%s;transport=%s>;audio_codecs=PCMU/8000/1", p.User, p.Domain, p.transport())
	}
	if p.Register {
		s += ";regint=600"
	} else {
		s += ";regint=0"
	}
	if p.Proxy != "" {
		s += fmt.Sprintf(`;outbound="sip:%s;transport=%s"`, p.Proxy, p.transport())
	}
	if p.Password != "" {
		s += ";auth_user=" + p.User + ";auth_pass=" + p.Password
	}
	if p.MediaEnc != "" {
		s += ";mediaenc=" + p.MediaEnc
	}
	if p.ICE {
		s += ";medianat=ice"
	}
	if p.Manual {
		return s + ";answermode=manual\n"
	}
	return s + ";answermode=auto\n"
}

// connect opens the control connection and reads events from it until it closes.
func (p *Phone) connect(t testing.TB) {
	t.Helper()
	eventually(t, 10*time.Second, p.User+" listens for commands", func() bool {
		return !p.proc.Alive() || p.Host.Do(func() (err error) {
			p.ctrl, err = net.DialTimeout("tcp", "127.0.0.1:4444", time.Second)
			return err
		}) == nil
	})
	if p.ctrl == nil {
		t.Fatalf("baresip %s ended: %v", p.User, p.proc.err)
	}
	done := make(chan struct{})
	go p.readEvents(done)
	t.Cleanup(func() {
		_ = p.ctrl.Close()
		<-done
	})
}

// readEvents reads netstrings ("12:{...},") from the control connection.
func (p *Phone) readEvents(done chan<- struct{}) {
	defer close(done)
	r := bufio.NewReader(p.ctrl)
	for {
		head, err := r.ReadString(':')
		if err != nil {
			return
		}
		n, err := strconv.Atoi(strings.TrimSuffix(head, ":"))
		if err != nil || n < 0 || n > 1<<20 {
			return
		}
		body := make([]byte, n+1)
		if _, err := io.ReadFull(r, body); err != nil {
			return
		}
		var e Event
		if json.Unmarshal(body[:n], &e) == nil {
			p.mu.Lock()
			p.events = append(p.events, e)
			p.mu.Unlock()
		}
	}
}

// Command sends a command to the phone, e.g. "dial", "sip:bob@example.org".
func (p *Phone) Command(t testing.TB, command, params string) {
	t.Helper()
	b, err := json.Marshal(map[string]string{"command": command, "params": params})
	must(t, command, err)
	_, err = fmt.Fprintf(p.ctrl, "%d:%s,", len(b), b)
	must(t, command, err)
}

// Expect waits for an event of one of the types and takes it and all before it away.
func (p *Phone) Expect(t testing.TB, d time.Duration, types ...string) Event {
	t.Helper()
	var found Event
	eventually(t, d, fmt.Sprintf("%s reports %v", p.User, types), func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		for i, e := range p.events {
			if e.Event && slices.Contains(types, e.Type) {
				found, p.events = e, p.events[i+1:]
				return true
			}
		}
		return false
	})
	return found
}

// Saw tells whether an event of the type is among those not taken yet.
func (p *Phone) Saw(typ string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.events, func(e Event) bool { return e.Event && e.Type == typ })
}

// Forget drops the events seen so far and the recordings made so far.
func (p *Phone) Forget() {
	p.mu.Lock()
	p.events = nil
	p.mu.Unlock()
	files, _ := filepath.Glob(filepath.Join(p.dir, "dump", "*.wav"))
	for _, f := range files {
		_ = os.Remove(f)
	}
}

// Dial starts a call to uri.
func (p *Phone) Dial(t testing.TB, uri string) {
	t.Helper()
	p.Command(t, "dial", uri)
}

// Hangup ends the current call.
func (p *Phone) Hangup(t testing.TB) { t.Helper(); p.Command(t, "hangup", "") }

// Heard says what the phone received, from all recordings of what it decoded since Forget. After a
// hold baresip 1.0.0 records no more of what it decodes (it flushes its filters); see [heardOnWire].
func (p *Phone) Heard(t testing.TB) Sound {
	t.Helper()
	files, _ := filepath.Glob(filepath.Join(p.dir, "dump", "*-dec.wav"))
	slices.Sort(files)
	var pcm []int16
	for _, f := range files {
		x, err := readWAV(f)
		must(t, f, err)
		pcm = append(pcm, x...)
	}
	return hear(pcm)
}

// Kill ends the phone at once, as a power cut does.
func (p *Phone) Kill() { p.proc.Stop(syscall.SIGKILL) }

// AOR returns the phone's address of record.
func (p *Phone) AOR() string { return "sip:" + p.User + "@" + p.Domain }
