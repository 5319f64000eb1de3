package mailbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func device(n int) (d Device) {
	copy(d[:], fmt.Sprintf("device %06d", n))
	return d
}

func openStore(t testing.TB, dir string, change func(*Options)) *Store {
	t.Helper()
	o := Options{Config: Default()}
	o.MinFree = 0
	if change != nil {
		change(&o)
	}
	s, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func message(from int, counter uint64, body string, to ...int) Message {
	m := Message{ID: ID{7, counter}, From: device(from), Size: int64(len(body)), Body: strings.NewReader(body)}
	for _, n := range to {
		m.To = append(m.To, device(n))
	}
	return m
}

func mustAppend(t *testing.T, s *Store, m Message) Receipt {
	t.Helper()
	r, err := s.Append(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// bodies returns what waits for a device, in order.
func bodies(t *testing.T, s *Store, n int, after uint64) (list []string, last uint64) {
	t.Helper()
	for {
		entries, _, err := s.Read(device(n), after)
		if err != nil {
			t.Fatal(err)
		}
		if len(entries) == 0 {
			return list, last
		}
		for _, e := range entries {
			b, err := e.Body()
			if err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(io.NewSectionReader(b, 0, e.Size))
			if err := errors.Join(err, b.Close()); err != nil {
				t.Fatal(err)
			}
			list, last, after = append(list, string(text)), e.Seq, max(after, e.Seq)
		}
		if last == 0 {
			return list, last
		}
	}
}

func wantBodies(t *testing.T, s *Store, n int, want ...string) uint64 {
	t.Helper()
	got, last := bodies(t, s, n, 0)
	if strings.Join(got, "|") != strings.Join(want, "|") {
		t.Fatalf("device %d has %q, want %q", n, got, want)
	}
	return last
}

func TestQueue(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, nil)
	id := s.ID()
	mustAppend(t, s, message(1, 1, "a", 2))
	mustAppend(t, s, message(1, 2, "b", 2, 3))
	mustAppend(t, s, message(4, 1, "c", 2))
	if r := mustAppend(t, s, message(1, 2, "b", 2, 3)); !r.Duplicate {
		t.Error("the second sending of a message is stored")
	}
	if _, err := s.Append(t.Context(), message(1, 4, "x", 2)); !errors.Is(err, ErrGap) {
		t.Errorf("a message was left out: %v", err)
	}
	wantBodies(t, s, 2, "a", "b", "c")
	first, _, err := s.Read(device(2), 0)
	if err != nil || first[0].From != device(1) || first[0].ID != (ID{7, 1}) {
		t.Fatalf("%+v, %v", first, err)
	}
	if n, err := s.Ack(device(2), first[1].Seq); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Append(t.Context(), message(1, 3, "d", 2)); err == nil {
		t.Error("a closed store takes messages")
	}
	s = openStore(t, dir, nil)
	if s.ID() != id {
		t.Error("the store has another ID after a restart")
	}
	if r := mustAppend(t, s, message(1, 2, "b", 2, 3)); !r.Duplicate {
		t.Error("a duplicate is stored after a restart")
	}
	wantBodies(t, s, 3, "b")
	last := wantBodies(t, s, 2, "c")
	if r := mustAppend(t, s, message(1, 3, "d", 2)); r.Seq <= last {
		t.Errorf("sequence number %d after %d", r.Seq, last)
	}
	for _, n := range []int{2, 3} {
		if _, err := s.Purge(device(n)); err != nil {
			t.Fatal(err)
		}
	}
	if st := s.Stats(); st.Messages != 0 || st.Octets != 0 || st.Devices != 0 || len(s.boxes) != 0 || st.Acked != 0 || st.Purged != 3 {
		t.Errorf("what is left: %+v, %d boxes", st, len(s.boxes))
	}
	if st := s.db.Stats(); st.OpenTxN != 0 {
		t.Errorf("%d transactions are open", st.OpenTxN)
	}
}

func TestQuota(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*Options)
		to     []int
	}{
		"device":   {func(o *Options) { o.PerDevice = 2 * (overhead + 10) }, []int{2}},
		"messages": {func(o *Options) { o.MaxMessages = 2 }, []int{2}},
		"total":    {func(o *Options) { o.Total = 2 * (overhead + 10) }, []int{2}},
		"group": {func(o *Options) {
			o.PerGroup = 4 * (overhead + 10)
			o.Group = func(Device) string { return "everybody" }
		}, []int{2, 3}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := openStore(t, dir, test.change)
			for i := range 2 {
				mustAppend(t, s, message(1, uint64(i+1), "0123456789", test.to...))
			}
			third := message(1, 3, "0123456789", test.to...)
			third.Body = iotestErr{t} // it must not be read
			if _, err := s.Append(t.Context(), third); !errors.Is(err, ErrQuota) {
				t.Fatalf("the third: %v", err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = openStore(t, dir, test.change)
			if _, err := s.Append(t.Context(), third); !errors.Is(err, ErrQuota) {
				t.Fatalf("the third after a restart: %v", err)
			}
			entries, _, err := s.Read(device(2), 0)
			if err != nil || len(entries) != 2 {
				t.Fatal(len(entries), err)
			}
			for _, n := range test.to {
				if _, err := s.Ack(device(n), entries[0].Seq); err != nil {
					t.Fatal(err)
				}
			}
			mustAppend(t, s, message(1, 3, "0123456789", test.to...))
			if s.Stats().Refused()["quota"] != 1 {
				t.Errorf("refused: %v", s.Stats().Refused())
			}
		})
	}
}

type iotestErr struct{ t *testing.T }

func (r iotestErr) Read([]byte) (int, error) {
	r.t.Error("the body of a refused message is read")
	return 0, io.EOF
}

func TestRefused(t *testing.T) {
	s := openStore(t, t.TempDir(), func(o *Options) { o.MaxSize = 1 << 20 })
	change := func(f func(*Message)) Message {
		m := message(1, 1, "body", 2)
		f(&m)
		return m
	}
	for name, test := range map[string]struct {
		m    Message
		want error
	}{
		"nobody":             {change(func(m *Message) { m.To = nil }), ErrBad},
		"too many":           {change(func(m *Message) { m.To = make([]Device, MaxRecipients+1) }), ErrBad},
		"twice":              {change(func(m *Message) { m.To = []Device{device(2), device(2)} }), ErrBad},
		"negative":           {change(func(m *Message) { m.Size = -1 }), ErrBad},
		"lifetime":           {change(func(m *Message) { m.TTL = -1 }), ErrBad},
		"flags":              {change(func(m *Message) { m.Flags = 0x80 }), ErrBad},
		"zero":               {change(func(m *Message) { m.ID.Counter = 0 }), ErrBad},
		"numbered ephemeral": {change(func(m *Message) { m.Flags = Ephemeral }), ErrBad},
		"large":              {change(func(m *Message) { m.Size = 1<<20 + 1 }), ErrTooBig},
		"short":              {change(func(m *Message) { m.Size++ }), ErrShort},
		"short file":         {change(func(m *Message) { m.Size = 1 << 20 }), ErrShort},
	} {
		if _, err := s.Append(t.Context(), test.m); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
	if _, err := s.Purge(device(2)); err != nil { // the half-sent one
		t.Fatal(err)
	}
	if st := s.Stats(); st.Messages != 0 || st.Octets != 0 {
		t.Errorf("something is still promised: %+v", st)
	}
}

func TestLifetime(t *testing.T) {
	s := openStore(t, t.TempDir(), nil)
	m := message(1, 1, "short", 2)
	m.TTL = time.Millisecond
	mustAppend(t, s, m)
	m = message(1, 2, "hour", 2)
	m.TTL = time.Hour
	mustAppend(t, s, m)
	mustAppend(t, s, message(1, 3, "long", 2))
	now := time.Now().Add(time.Minute)
	if n, err := s.Expire(now); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	wantBodies(t, s, 2, "hour", "long")
	if n, err := s.Expire(now.Add(2 * time.Hour)); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	wantBodies(t, s, 2, "long")
	if n, err := s.Expire(now.Add(markLife)); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if st := s.Stats(); st.Octets != 0 || st.Expired != 3 {
		t.Errorf("%+v", st)
	}
	if r := mustAppend(t, s, message(1, 1, "new count", 2)); r.Duplicate {
		t.Error("a mark outlives its time")
	}
}

func TestDiscardAndEphemeral(t *testing.T) {
	s := openStore(t, t.TempDir(), nil)
	m := message(1, 1, "for those who are there", 2, 3)
	m.Flags = Discard
	leave := s.Attach(device(3))
	if r := mustAppend(t, s, m); r.Discarded != 1 {
		t.Errorf("%+v", r)
	}
	leave()
	m = message(1, 2, "nobody", 2)
	m.Flags = Discard
	if r := mustAppend(t, s, m); r.Discarded != 1 || r.Seq != 0 {
		t.Errorf("%+v", r)
	}
	large := message(1, 3, strings.Repeat("x", maxInline+1), 2)
	large.Flags = Discard
	if r := mustAppend(t, s, large); r.Discarded != 1 {
		t.Errorf("%+v", r)
	}
	wantBodies(t, s, 2)
	wantBodies(t, s, 3, "for those who are there")
	m = message(1, 0, "passing", 2, 3)
	m.Flags = Ephemeral
	for range 2 {
		mustAppend(t, s, m)
		m.Body = strings.NewReader("passing")
	}
	wantBodies(t, s, 3, "passing", "passing", "for those who are there")
	wantBodies(t, s, 3, "for those who are there")
	if _, err := s.Expire(time.Now().Add(2 * ephemeralLife)); err != nil {
		t.Fatal(err)
	}
	wantBodies(t, s, 2)
	m.Size, m.Body = maxInline, bytes.NewReader(make([]byte, maxInline))
	var err error
	for range 1 + passingOctets/maxInline {
		if _, err = s.Append(t.Context(), m); err != nil {
			break
		}
		m.Body = bytes.NewReader(make([]byte, maxInline))
	}
	if !errors.Is(err, ErrQuota) {
		t.Errorf("ephemeral messages without end: %v", err)
	}
	if _, err := s.Purge(device(2)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Purge(device(3)); err != nil {
		t.Fatal(err)
	}
	if s.ephemeral != 0 || len(s.boxes) != 0 {
		t.Errorf("%d octets, %d boxes are left", s.ephemeral, len(s.boxes))
	}
}

func TestUpload(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, nil)
	body := bytes.Repeat([]byte("0123456789abcdef"), (syncEvery+1<<20)/16)
	m := func() Message {
		m := message(1, 1, "", 2, 3)
		m.Size, m.Body = int64(len(body)), bytes.NewReader(body)
		return m
	}
	begin := func(s *Store) *Upload {
		t.Helper()
		u, _, err := s.Begin(m())
		if err != nil || u == nil {
			t.Fatal(u, err)
		}
		return u
	}
	u := begin(s)
	if _, err := u.Write(body[:1000]); err != nil {
		t.Fatal(err)
	}
	second := begin(s)
	if _, err := u.Write(body[1000:2000]); !errors.Is(err, ErrFenced) {
		t.Errorf("two write at once: %v", err)
	}
	u.Close()
	if second.Offset() != 1000 {
		t.Errorf("it goes on at %d", second.Offset())
	}
	if _, err := second.Commit(); !errors.Is(err, ErrShort) {
		t.Errorf("a part is taken for the whole: %v", err)
	}
	if err := second.Rewind(100); err != nil {
		t.Fatal(err)
	}
	for _, some := range [][]byte{body[100 : syncEvery+200], body[syncEvery+200 : len(body)-10]} {
		if _, err := second.Write(some); err != nil {
			t.Fatal(err)
		}
	}
	if err := second.Rewind(int64(len(body))); !errors.Is(err, ErrBad) {
		t.Errorf("rewound forward: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, filesDir, "orphan"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, nil)
	third := begin(s)
	if at := third.Offset(); at != syncEvery+200 {
		t.Errorf("after a restart it goes on at %d: only what was synced counts", at)
	}
	third.Close()
	if st := s.Stats(); st.Messages != 2 || st.Octets != int64(len(body))+2*overhead {
		t.Errorf("promised: %+v", st)
	}
	mustAppend(t, s, m())
	wantBodies(t, s, 2, string(body))
	for i, n := range []int{2, 3} {
		files, err := os.ReadDir(filepath.Join(dir, filesDir))
		if err != nil || len(files) != 1 {
			t.Fatalf("before reader %d: %d files, %v", i, len(files), err)
		}
		if _, err := s.Ack(device(n), 1<<60); err != nil {
			t.Fatal(err)
		}
	}
	if files, err := os.ReadDir(filepath.Join(dir, filesDir)); err != nil || len(files) != 0 {
		t.Fatalf("%d files are left, %v", len(files), err)
	}
	if u, r, err := s.Begin(m()); u != nil || !r.Duplicate || err != nil {
		t.Errorf("%v %v %v", u, r, err)
	}
}

func TestHalfSentIsForgotten(t *testing.T) {
	s := openStore(t, t.TempDir(), nil)
	m := message(1, 1, "", 2)
	m.Size = 1 << 20
	u, _, err := s.Begin(m)
	if err != nil {
		t.Fatal(err)
	}
	m.To = []Device{device(3)} // another list: what is there is of no use
	other, _, err := s.Begin(m)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Write([]byte("x")); !errors.Is(err, ErrFenced) {
		t.Error(err)
	}
	if st := s.Box(device(2)); st.Messages != 0 {
		t.Errorf("%+v", st)
	}
	other.Close()
	if _, err := s.Expire(time.Now().Add(partLife + time.Hour)); err != nil {
		t.Fatal(err)
	}
	if st := s.Stats(); st.Octets != 0 || st.Messages != 0 {
		t.Errorf("%+v", st)
	}
}

func TestWait(t *testing.T) {
	s := openStore(t, t.TempDir(), nil)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	got := make(chan string, 100)
	wg.Go(func() {
		var after uint64
		for s.Wait(ctx, device(2), after) == nil {
			entries, _, err := s.Read(device(2), after)
			if err != nil {
				t.Error(err)
			}
			for _, e := range entries {
				got <- string(e.inline)
				after = e.Seq
			}
		}
	})
	for i := range 50 {
		mustAppend(t, s, message(1, uint64(i+1), fmt.Sprint(i), 2))
		if text := <-got; text != fmt.Sprint(i) {
			t.Fatalf("%d: %s", i, text)
		}
	}
	cancel()
	wg.Wait()
}

// TestManySenders has several senders at once write to several devices: each device sees each sender's messages in order.
func TestManySenders(t *testing.T) {
	s := openStore(t, t.TempDir(), nil)
	const senders, each = 8, 100
	var wg sync.WaitGroup
	for n := range senders {
		wg.Go(func() {
			for i := range each {
				if _, err := s.Append(t.Context(), message(100+n, uint64(i+1), fmt.Sprintf("%d %d", n, i), 1, 2)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	for _, d := range []int{1, 2} {
		list, _ := bodies(t, s, d, 0)
		next := make([]int, senders)
		for _, text := range list {
			var n, i int
			if _, err := fmt.Sscan(text, &n, &i); err != nil || next[n] != i {
				t.Fatalf("%q, want number %d: %v", text, next[n], err)
			}
			next[n]++
		}
		if len(list) != senders*each {
			t.Errorf("%d messages", len(list))
		}
	}
	if st := s.Stats(); st.Commits >= st.Changes {
		t.Errorf("%d changes in %d transactions: none waited for another", st.Changes, st.Commits)
	}
}

func TestDamagedFile(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, nil)
	mustAppend(t, s, message(1, 1, strings.Repeat("x", 1<<20), 2))
	mustAppend(t, s, message(1, 2, "next", 2))
	files, err := filepath.Glob(filepath.Join(dir, filesDir, "*"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	if err := os.Truncate(files[0], 100); err != nil {
		t.Fatal(err)
	}
	wantBodies(t, s, 2, "next")
	if st := s.Stats(); st.Damaged == 0 {
		t.Error("nobody counts it")
	}
}

func FuzzRecords(f *testing.F) {
	f.Add(bodyHead{kind: bodyInline, size: 3, rest: []byte("abc")}.append(nil))
	f.Add(bodyHead{kind: bodyFile, size: 1 << 40}.append(nil))
	f.Add(part{size: 10, synced: 5, to: []Device{device(1)}}.bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := parseBody(b); err == nil && !bytes.Equal(h.append(nil), b) {
			t.Errorf("body %x", b)
		}
		if p, err := parsePart(b); err == nil && !bytes.Equal(p.bytes(), b) {
			t.Errorf("part %x", b)
		}
	})
}

// BenchmarkAppendAll has 64 senders store 16 messages each at once, for 10,000 devices: what a relay does with streams whose senders do
// not wait for each answer.
func BenchmarkAppendAll(b *testing.B) {
	for _, size := range []int{256, 4096} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			s := openStore(b, b.TempDir(), nil)
			body := make([]byte, size)
			const senders, each = 64, 16
			var left atomic.Int64
			left.Store(int64(b.N))
			var wg sync.WaitGroup
			for w := range senders {
				wg.Go(func() {
					for n := uint64(1); left.Add(-each) > -each; {
						var list []Message
						for range each {
							list = append(list, Message{
								ID: ID{1, n}, From: device(100_000 + w), To: []Device{device((int(n)*7919 + w*31) % 10_000)},
								Size: int64(size), Body: bytes.NewReader(body),
							})
							n++
						}
						for _, o := range s.AppendAll(list) {
							if o.Err != nil {
								b.Error(o.Err)
								return
							}
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
		})
	}
}

// TestUploadBegunAtOnce: a sender that begins one message many times at once has room promised for one.
func TestUploadBegunAtOnce(t *testing.T) {
	s := openStore(t, t.TempDir(), nil)
	before := s.Stats().Octets
	m := Message{ID: ID{1, 1}, From: Device{1}, To: []Device{{2}}, Size: 1 << 20}
	var all sync.WaitGroup
	var mu sync.Mutex
	var last *Upload
	for range 32 {
		all.Go(func() {
			u, _, err := s.Begin(m)
			if err != nil && !errors.Is(err, ErrFenced) {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			if u != nil {
				last = u
			}
		})
	}
	all.Wait()
	if last == nil {
		t.Fatal("none of them began")
	}
	if promised := s.Stats().Octets - before; promised != m.Size+overhead {
		t.Errorf("%d octets are promised for a message of %d", promised, m.Size)
	}
	if box := s.Box(Device{2}); box.Messages != 1 {
		t.Errorf("%d messages are promised", box.Messages)
	}
}

// TestUploadForMore: a sender that names more recipients the second time is not told that all of them have it.
func TestUploadForMore(t *testing.T) {
	s := openStore(t, t.TempDir(), nil)
	m := Message{ID: ID{1, 1}, From: Device{1}, To: []Device{{2}}, Size: 1 << 20}
	u, _, err := s.Begin(m)
	if err != nil {
		t.Fatal(err)
	}
	u.Close()
	m.To = append(m.To, Device{3})
	if u, _, err = s.Begin(m); err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if _, err := u.Write(make([]byte, m.Size)); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Commit(); err != nil {
		t.Fatal(err)
	}
	for _, d := range m.To {
		if list, _, err := s.Read(d, 0); err != nil || len(list) != 1 {
			t.Errorf("%d: %d messages, %v", d[0], len(list), err)
		}
	}
}
