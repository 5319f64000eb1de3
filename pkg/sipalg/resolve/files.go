package resolve

import (
	"bufio"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// look is how often a file's time is looked at.
	look = 5 * time.Second
	// maxFile bounds how much of it is read.
	maxFile = 4 << 20
)

// watched is a file that is parsed again when it changes.
type watched[T any] struct {
	path  string
	parse func(io.Reader) (T, error)

	mu    sync.Mutex // guards what follows
	value T
	mod   time.Time
	size  int64
	next  time.Time
}

func watch[T any](path string, parse func(io.Reader) (T, error)) *watched[T] {
	return &watched[T]{path: path, parse: parse}
}

// get returns what the file says: nothing while it is missing, what it said before while it cannot be read.
func (w *watched[T]) get() T {
	w.mu.Lock()
	defer w.mu.Unlock()
	if now := time.Now(); now.After(w.next) {
		w.next = now.Add(look)
		w.readLocked()
	}
	return w.value
}

func (w *watched[T]) readLocked() {
	info, err := os.Stat(w.path)
	if os.IsNotExist(err) {
		var none T
		w.value, w.mod, w.size = none, time.Time{}, 0
		return
	}
	if err != nil || info.ModTime().Equal(w.mod) && info.Size() == w.size {
		return
	}
	f, err := os.Open(w.path)
	if err != nil {
		return
	}
	defer f.Close()
	if value, err := w.parse(io.LimitReader(f, maxFile)); err == nil {
		w.value, w.mod, w.size = value, info.ModTime(), info.Size()
	}
}

// parseHosts reads hosts(5).
func parseHosts(f io.Reader) (map[string][]netip.Addr, error) {
	hosts := map[string][]netip.Addr{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		text, _, _ := strings.Cut(lines.Text(), "#")
		fields := strings.Fields(text)
		if len(fields) < 2 {
			continue
		}
		addr, err := netip.ParseAddr(fields[0])
		if err != nil {
			continue
		}
		for _, name := range fields[1:] {
			k := key(name)
			if list := hosts[k]; len(list) < maxRecords && !slices.Contains(list, addr.Unmap()) {
				hosts[k] = append(list, addr.Unmap())
			}
		}
	}
	return hosts, lines.Err()
}

func parseResolvConf(f io.Reader) (*dns.ClientConfig, error) { return dns.ClientConfigFromReader(f) }
