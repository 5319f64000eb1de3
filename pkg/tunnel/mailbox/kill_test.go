package mailbox

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// What a test's child process does is in the environment.
const (
	childDir   = "EDGED_TEST_MAILBOX_DIR"
	childStart = "EDGED_TEST_MAILBOX_START" // "epoch counter" of each writer, by commas
	childLimit = "EDGED_TEST_MAILBOX_LIMIT" // octets that a file may have
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		if err := child(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// killBody is the body of a writer's n-th message: every 64th is a file.
func killBody(writer int, n uint64) []byte {
	size := 16 + int(n*97%4000)
	if n%64 == 0 {
		size = maxInline + 1 + int(n*997%100000)
	}
	b := make([]byte, size)
	binary.BigEndian.PutUint64(b, uint64(writer))
	binary.BigEndian.PutUint64(b[8:], n)
	for i := 16; i < size; i++ {
		b[i] = byte(i) ^ byte(n)
	}
	return b
}

// child writes to the store for ever, many at once: writer w sends to the devices of this number. It prints "W N" when message N
// is acknowledged, and "full W N" when there was no room for it.
func child(dir string) error {
	if limit := os.Getenv(childLimit); limit != "" {
		signal.Ignore(syscall.SIGXFSZ)
		n, err := strconv.ParseUint(limit, 10, 64)
		if err != nil {
			return err
		}
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: n, Max: n}); err != nil {
			return err
		}
	}
	o := Options{Config: Default()}
	o.MinFree = 0
	s, err := Open(dir, o)
	if err != nil {
		return err
	}
	defer s.Close()
	var mu sync.Mutex
	out := bufio.NewWriter(os.Stdout)
	say := func(format string, v ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(out, format+"\n", v...)
		out.Flush()
	}
	var wg sync.WaitGroup
	failures := make(chan error, 1)
	for w, text := range strings.Split(os.Getenv(childStart), ",") {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return err
		}
		wg.Go(func() {
			if err := childWriter(s, w, n, say); err != nil {
				select {
				case failures <- err:
				default:
				}
			}
		})
	}
	wg.Wait()
	select {
	case err := <-failures:
		return err
	default:
		return nil
	}
}

func childWriter(s *Store, w int, n uint64, say func(string, ...any)) error {
	full := 0
	for ; ; n++ {
		_, err := s.Append(context.Background(), killMessage(w, n))
		switch {
		case errors.Is(err, ErrDisk):
			say("full %d %d", w, n)
			if full++; full == 3 {
				return nil
			}
			n--
		case err != nil:
			return err
		default:
			say("%d %d", w, n)
		}
	}
}

func killMessage(w int, n uint64) Message {
	body := killBody(w, n)
	m := message(1000+w, n, string(body), w)
	if n%16 == 0 {
		m.To = append(m.To, device(w+1), device(w+2))
	}
	return m
}

// kill is the view from outside: what was acknowledged, and what has been read.
type kill struct {
	t     *testing.T
	dir   string
	acked []uint64 // by writer: the last one
	read  map[[2]int]uint64
	seen  map[Device]uint64
	total int
	fulls int
}

// run lets a child write until it is killed, after some messages, or ends.
func (k *kill) run(stop int, env ...string) {
	k.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		k.t.Fatal(err)
	}
	start := make([]string, len(k.acked))
	for i, n := range k.acked {
		start[i] = strconv.FormatUint(n+1, 10)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), append(env, childDir+"="+k.dir, childStart+"="+strings.Join(start, ","))...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		k.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		k.t.Fatal(err)
	}
	got := 0
	for lines := bufio.NewScanner(out); lines.Scan(); {
		line, isFull := strings.CutPrefix(lines.Text(), "full ")
		var w int
		var n uint64
		if _, err := fmt.Sscan(line, &w, &n); err != nil {
			continue // cut by the kill
		}
		if isFull {
			k.fulls++
			continue
		}
		if n != k.acked[w]+1 {
			k.t.Errorf("writer %d: %d is acknowledged after %d", w, n, k.acked[w])
		}
		k.acked[w] = n
		k.total++
		if got++; got == stop {
			if err := cmd.Process.Kill(); err != nil {
				k.t.Fatal(err)
			}
		}
	}
	if err := cmd.Wait(); err != nil && stop < 0 {
		k.t.Fatal(err)
	}
}

// drain reads all queues, and checks order and content; some of it is acknowledged, and some of that twice.
func (k *kill) drain(s *Store, all bool) {
	k.t.Helper()
	for d := range len(k.acked) + 2 {
		after := k.seen[device(d)]
		for {
			entries, _, err := s.Read(device(d), after)
			if err != nil {
				k.t.Fatal(err)
			}
			if len(entries) == 0 {
				break
			}
			for _, e := range entries {
				k.entry(d, e)
				after = e.Seq
			}
			if !all && rand.IntN(2) == 0 {
				break
			}
		}
		k.seen[device(d)] = after
		if _, err := s.Ack(device(d), after); err != nil {
			k.t.Fatal(err)
		}
	}
}

func (k *kill) entry(d int, e Entry) {
	k.t.Helper()
	b, err := e.Body()
	if err != nil {
		k.t.Fatal(err)
	}
	defer b.Close()
	got, err := io.ReadAll(io.NewSectionReader(b, 0, e.Size))
	if err != nil || len(got) < 16 {
		k.t.Fatal(len(got), err)
	}
	w, n := int(binary.BigEndian.Uint64(got)), binary.BigEndian.Uint64(got[8:])
	if string(got) != string(killBody(w, n)) {
		k.t.Fatalf("device %d: message %d of %d is damaged", d, n, w)
	}
	want := k.read[[2]int{d, w}] + 1
	for !goesTo(w, want, d) {
		want++
	}
	if n != want {
		k.t.Fatalf("device %d has message %d of writer %d, want %d", d, n, w, want)
	}
	k.read[[2]int{d, w}] = n
}

func goesTo(w int, n uint64, d int) bool { return d == w || n%16 == 0 && (d == w+1 || d == w+2) }

// complete checks that all that was acknowledged has been read, and at most the one more of each writer that was under way.
func (k *kill) complete() {
	k.t.Helper()
	for w, n := range k.acked {
		if got := k.read[[2]int{w, w}]; got < n || got > n+1 {
			k.t.Errorf("writer %d: %d were acknowledged, %d were read", w, n, got)
		}
	}
}

func newKill(t *testing.T, writers int) *kill {
	return &kill{t: t, dir: t.TempDir(), acked: make([]uint64, writers), read: make(map[[2]int]uint64), seen: make(map[Device]uint64)}
}

// TestKill has a process that writes to many devices killed again and again. Each message that was acknowledged arrives once,
// in order, however often the process died, and whatever is sent again.
func TestKill(t *testing.T) {
	devices, messages, each := 8, 1500, 250
	if os.Getenv("EDGED_LAB_FULL") != "" || os.Getenv("EDGED_SOAK") != "" {
		devices, messages, each = 100, 100_000, 4000
	}
	k := newKill(t, devices)
	kills, began := 0, time.Now()
	for k.total < messages {
		k.run(1 + rand.IntN(2*each))
		kills++
		if kills%3 == 0 {
			s := openStore(t, k.dir, nil)
			k.drain(s, false)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	s := openStore(t, k.dir, nil)
	k.drain(s, true)
	k.complete()
	if st := s.Stats(); st.Damaged != 0 {
		t.Errorf("%+v", st)
	}
	t.Logf("%d messages to %d devices, %d kills, %v", k.total, devices, kills, time.Since(began).Round(time.Second))
}

// TestFullDisk has a process write until there is no more room: senders are told so, and what was acknowledged is there.
func TestFullDisk(t *testing.T) {
	t.Run("file size limit", func(t *testing.T) {
		testFullDisk(t, newKill(t, 4), childLimit+"=4194304")
	})
	t.Run("tmpfs", func(t *testing.T) {
		k := newKill(t, 4)
		if err := syscall.Mount("edged-test", k.dir, "tmpfs", 0, "size=12m"); err != nil {
			t.Skipf("a small file system cannot be mounted: %v", err)
		}
		t.Cleanup(func() {
			if err := syscall.Unmount(k.dir, syscall.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
		testFullDisk(t, k)
	})
}

func testFullDisk(t *testing.T, k *kill, env ...string) {
	k.run(-1, env...)
	if k.fulls == 0 || k.total == 0 {
		t.Fatalf("%d messages, %d refused", k.total, k.fulls)
	}
	t.Logf("%d messages, %d refused", k.total, k.fulls)
	s := openStore(t, k.dir, nil)
	k.drain(s, true)
	k.complete()
	if st := s.Stats(); st.Damaged != 0 {
		t.Errorf("%+v", st)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	k.run(100) // there is room again
	s = openStore(t, k.dir, nil)
	k.drain(s, true)
	k.complete()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
