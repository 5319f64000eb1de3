package carrier

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
)

const (
	memoryTime = 24 * time.Hour
	memoryMax  = 64 // networks
	memoryFile = 64 << 10
)

// Memory remembers which way won in which network, for a day, in a small file. A nil *Memory remembers nothing.
// It may be used concurrently, by one process.
type Memory struct {
	file string

	mu    sync.Mutex
	known map[string]remembered
}

type remembered struct {
	Way string    `json:"way"` // RUNG PATH
	At  time.Time `json:"at"`
}

// OpenMemory reads a file; one that is missing, too large or damaged is as an empty one, and written anew.
func OpenMemory(file string) *Memory {
	m := &Memory{file: file, known: map[string]remembered{}}
	if info, err := os.Stat(file); err == nil && info.Size() <= memoryFile {
		b, err := os.ReadFile(file)
		if err != nil || json.Unmarshal(b, &m.known) != nil || m.known == nil {
			m.known = map[string]remembered{}
		}
	}
	return m
}

// recall returns what won in a network within the last day.
func (m *Memory) recall(network string) (string, bool) {
	if m == nil {
		return "", false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.known[network]
	return r.Way, ok && time.Since(r.At) < memoryTime
}

// remember notes what won. That it cannot be written is no fault of the connection: it is logged.
func (m *Memory) remember(network, won string, log *zap.Logger) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(m.known, func(_ string, r remembered) bool { return now.Sub(r.At) >= memoryTime })
	if _, ok := m.known[network]; !ok && len(m.known) >= memoryMax {
		delete(m.known, m.oldest())
	}
	m.known[network] = remembered{won, now}
	if err := m.write(); err != nil {
		log.Warn("what gets through is not remembered", zap.Error(err))
	}
}

func (m *Memory) oldest() (network string) {
	for k, r := range m.known {
		if network == "" || r.At.Before(m.known[network].At) {
			network = k
		}
	}
	return network
}

// write replaces the file.
func (m *Memory) write() error {
	b, err := json.MarshalIndent(m.known, "", " ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(m.file), ".ways-*") // of mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.Write(b)
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), m.file)
}

// network names where this host is and what proxies there are, without saying either in clear.
func (d *Dialer) network(ways []way) string {
	if d.Memory == nil {
		return ""
	}
	var b strings.Builder
	b.WriteString(d.Where() + "\n" + d.Relay)
	for _, w := range ways {
		b.WriteString("\n" + w.String())
	}
	sum := sha256.Sum256([]byte(b.String()))
	return hex.EncodeToString(sum[:8])
}

// Where names the network that this host is in.
func (d *Dialer) Where() string {
	if d.Network != nil {
		return d.Network()
	}
	return defaultRoute()
}

// defaultRoute describes the default routes by their gateways and, where known, the gateways' hardware addresses, since
// many networks have the same private addresses.
func defaultRoute() string {
	var b strings.Builder
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteList(nil, family)
		if err != nil {
			continue
		}
		for _, r := range routes {
			if r.Dst != nil && r.Dst.String() != "0.0.0.0/0" && r.Dst.String() != "::/0" {
				continue
			}
			fmt.Fprintf(&b, "%v %v;", r.Gw, hardware(r.LinkIndex, family, r.Gw))
		}
	}
	return b.String()
}

func hardware(link, family int, gateway net.IP) string {
	list, err := netlink.NeighList(link, family)
	if err != nil {
		return ""
	}
	for _, n := range list {
		if n.IP.Equal(gateway) {
			return n.HardwareAddr.String()
		}
	}
	return ""
}
