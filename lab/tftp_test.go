//go:build lab

package lab

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// tftpPrograms skips a case for which programs are missing.
func tftpPrograms(t *testing.T) {
	t.Helper()
	for _, name := range []string{"tftp", "in.tftpd", "busybox"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("SKIPPED: %v (Debian packages: lab/packages.txt)", err)
		}
	}
}

// tftpLab begins a case that needs the programs of tftp-hpa.
func tftpLab(t *testing.T) *Rig {
	t.Helper()
	tftpPrograms(t)
	onlyEdged(t, "it has no TFTP")
	return lab(t)
}

// tftpd runs a server on the host, and returns the folder of its files.
func (h *Host) tftpd(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(h.dir, "tftpd-"+h.Name)
	must(t, "tftpd", os.MkdirAll(dir, 0o700))
	for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) { // in.tftpd serves as nobody
		must(t, "tftpd", os.Chmod(d, 0o755))
	}
	must(t, "tftpd", os.Chown(dir, 65534, 65534))
	h.Start(t, "tftpd-"+h.Name, "in.tftpd", "--foreground", "--listen", "--create", "--secure", "--user", "nobody", "--address", netip.AddrPortFrom(h.IP, 69).String(), dir)
	eventually(t, 20*time.Second, "tftpd listens", func() bool {
		var table []byte
		must(t, "sockets", h.Do(func() (err error) {
			table, err = os.ReadFile("/proc/thread-self/net/udp")
			return err
		}))
		return bytes.Contains(table, []byte(":0045 "))
	})
	return dir
}

// try runs a program on the host for at most d.
func (h *Host) try(d time.Duration, argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := h.Do(cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	return out.String(), err
}

// tftpTime is how long one transfer may take.
const tftpTime = 60 * time.Second

// tftpGet gets a file: block 0 with tftp-hpa, which asks for no options, otherwise with busybox.
func (h *Host) tftpGet(d time.Duration, at netip.Addr, name, file string, block int) (string, error) {
	if block == 0 {
		return h.try(d, "tftp", "-m", "binary", at.String(), "-c", "get", name, file)
	}
	return h.try(d, "busybox", "tftp", "-g", "-b", fmt.Sprint(block), "-r", name, "-l", file, at.String())
}

// tftpPut puts a file likewise.
func (h *Host) tftpPut(d time.Duration, at netip.Addr, file, name string, block int) (string, error) {
	if block == 0 {
		return h.try(d, "tftp", "-m", "binary", at.String(), "-c", "put", file, name)
	}
	return h.try(d, "busybox", "tftp", "-p", "-b", fmt.Sprint(block), "-r", name, "-l", file, at.String())
}

// noise returns a file of random octets.
func noise(t *testing.T, path string, size int) []byte {
	t.Helper()
	b := make([]byte, size)
	rand.NewChaCha8([32]byte([]byte(fmt.Sprintf("%032d", size)))).Read(b)
	must(t, "file", os.WriteFile(path, b, 0o644))
	return b
}

// same fails the test unless a file holds these octets; a server may write them a little later than it says.
func same(t *testing.T, path string, want []byte) {
	t.Helper()
	var got []byte
	if !until(10*time.Second, func() bool { got, _ = os.ReadFile(path); return bytes.Equal(got, want) }) {
		t.Errorf("%s: %d octets, not the %d that were sent", filepath.Base(path), len(got), len(want))
	}
}

// trivialGate is an edged that relays TFTP between a client and a server on either side.
func (r *Rig) trivialGate(t *testing.T, in, out *Host, more string) *Edge {
	t.Helper()
	return r.Edge(t, EdgeConfig{More: fmt.Sprintf(
		"tftp:\n  trivial:\n    listen: [\"udp://inside:69\", \"udp://outside:69\"]\n    servers: {inside: %q, outside: \"%s:69\"}\n    write: true\n%s", out.IP, in.IP, more)})
}

// TestTFTP: real clients get and put files of all lengths in both directions, in blocks of 512 and 1428, over IPv4 and by
// way of IPv6, several at a time.
func TestTFTP(t *testing.T) {
	r := tftpLab(t)
	in, out := r.Inside("in1"), r.Outside("out1")
	dirs := map[*Host]string{in: in.tftpd(t), out: out.tftpd(t)}
	r.trivialGate(t, in, out, "")
	var work sync.WaitGroup
	for _, way := range []struct {
		client, server *Host
		side           side
	}{{in, out, inside}, {out, in, outside}} {
		for _, block := range []int{0, 512, 1428} {
			for _, family := range []int{4, 6} {
				work.Go(func() {
					at := r.GW.IPOn(way.side, family)
					for _, size := range []int{0, 1, 511, 512, 513, 1428, 300000} {
						name := fmt.Sprintf("%s-%d-%d-%d", way.client.Name, block, family, size)
						want := noise(t, filepath.Join(dirs[way.server], name), size)
						got := filepath.Join(r.Dir, "got-"+name)
						if text, err := way.client.tftpGet(tftpTime, at, name, got, block); err != nil || strings.Contains(text, "rror") {
							t.Errorf("get %s: %v: %s", name, err, text)
							continue
						}
						same(t, got, want)
						if text, err := way.client.tftpPut(tftpTime, at, got, "put-"+name, block); err != nil || strings.Contains(text, "rror") {
							t.Errorf("put %s: %v: %s", name, err, text)
							continue
						}
						same(t, filepath.Join(dirs[way.server], "put-"+name), want)
					}
				})
			}
		}
	}
	work.Wait()
}

// TestTFTPRefused: what the policy refuses is told to the client, and the server hears nothing of it; a missing file is
// the server's own word.
func TestTFTPRefused(t *testing.T) {
	r := tftpLab(t)
	in, out := r.Inside("in1"), r.Outside("out1")
	dir := out.tftpd(t)
	r.trivialGate(t, in, out, "    deny: [\"*.cfg\"]\n  max_size: 100KiB\n")
	gate := r.GW.IPOn(inside, 4)
	noise(t, filepath.Join(dir, "secret.cfg"), 100)
	noise(t, filepath.Join(dir, "large"), 200000)
	large := filepath.Join(r.Dir, "large")
	noise(t, large, 200000)
	for _, tc := range []struct {
		name, says string
		run        func() (string, error)
	}{
		{"denied", "not allowed", func() (string, error) { return in.tftpGet(tftpTime, gate, "secret.CFG", filepath.Join(r.Dir, "x"), 0) }},
		{"upwards", "not allowed", func() (string, error) { return in.tftpGet(tftpTime, gate, "../x", filepath.Join(r.Dir, "x"), 0) }},
		{"too large to get", "too large", func() (string, error) { return in.tftpGet(tftpTime, gate, "large", filepath.Join(r.Dir, "x"), 0) }},
		{"too large to put", "too large", func() (string, error) { return in.tftpPut(tftpTime, gate, large, "put", 0) }},
		{"missing", "not found", func() (string, error) { return in.tftpGet(tftpTime, gate, "nothing", filepath.Join(r.Dir, "x"), 0) }},
	} {
		text, _ := tc.run() // tftp-hpa exits with 0 even so
		if !strings.Contains(strings.ToLower(text), tc.says) {
			t.Errorf("%s: the client says %q", tc.name, text)
		}
	}
}

// TestTFTPBesideFiles: files by RFC 1350 and files between Messenger's clients, which have only the name in common, at the
// same time.
func TestTFTPBesideFiles(t *testing.T) {
	tftpPrograms(t)
	near, far := nets4[inside]+"11", nets4[outside]+"12" // the hosts that newPair will make
	p := newPair(t, setting{Office: OfficeConfig{Signing: 4}, Edge: EdgeConfig{More: fmt.Sprintf(
		"tftp:\n  ports: 6891-6901\n  trivial: {listen: [\"udp://inside:69\", \"udp://outside:69\"], servers: {inside: %s, outside: %s}, write: true}\n", far, near)}})
	in, out := p.alice.Host, p.bob.Host
	if in.IP.String() != near || out.IP.String() != far {
		t.Fatalf("the hosts are %v and %v", in.IP, out.IP)
	}
	dirs := map[*Host]string{in: in.tftpd(t), out: out.tftpd(t)}
	var running []*offered
	for i := range 4 { // one way at a time: a client that sends waits for nothing else
		running = append(running, p.alice.offers(t, p.bob, fmt.Sprintf("out-%d.dat", i), 3000000))
	}
	var work sync.WaitGroup
	for client, server := range map[*Host]*Host{in: out, out: in} {
		work.Go(func() {
			for i := range 10 {
				name := fmt.Sprintf("%s-%d", client.Name, i)
				want := noise(t, filepath.Join(dirs[server], name), 100000+i)
				got := filepath.Join(p.rig.Dir, "got-"+name)
				if text, err := client.tftpGet(tftpTime, p.rig.GW.IPOn(client.Side, 4), name, got, 1428*(i%2)); err != nil {
					t.Errorf("get %s: %v: %s", name, err, text)
					continue
				}
				same(t, got, want)
				if text, err := client.tftpPut(tftpTime, p.rig.GW.IPOn(client.Side, 4), got, "put-"+name, 1428*(i%2)); err != nil {
					t.Errorf("put %s: %v: %s", name, err, text)
					continue
				}
				same(t, filepath.Join(dirs[server], "put-"+name), want)
			}
		})
	}
	work.Wait()
	for _, f := range running {
		f.arrives(t)
	}
	eventually(t, 30*time.Second, "all transfers of RFC 1350 are counted", func() bool {
		return p.edge.Metric("edged_tftp_trivial_transfers_total", "result", "completed") == 40
	})
	p.office.wantSigned(t)
}

// TestTFTPControl: without edged, by a plain NAT, no file comes: the server answers from a port that nobody expects.
func TestTFTPControl(t *testing.T) {
	r := tftpLab(t)
	in, out := r.Inside("in1"), r.Outside("out1")
	dir := out.tftpd(t)
	want := noise(t, filepath.Join(dir, "file"), 1000)
	got := filepath.Join(r.Dir, "got")
	if text, err := r.Outside("out2").tftpGet(tftpTime, out.IP, "file", got, 0); err != nil {
		t.Fatalf("directly: %v: %s", err, text)
	}
	same(t, got, want)
	r.PlainNAT()
	for _, at := range []netip.Addr{out.IP, r.GW.IPOn(inside, 4)} {
		text, err := in.tftpGet(4*time.Second, at, "file", filepath.Join(r.Dir, "through"), 0)
		if b, _ := os.ReadFile(filepath.Join(r.Dir, "through")); len(b) != 0 {
			t.Errorf("%v: %d octets came without edged: %s, %v", at, len(b), text, err)
		}
	}
}
