package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"edged.dev/edged/pkg/tunnel/mailbox/desk"
)

// messagesClient speaks to the agent's socket for programs.
type messagesClient struct{ http *http.Client }

func newMessagesClient(cmd *cobra.Command) (*messagesClient, error) {
	cfg, err := loadConfig(configFile(cmd))
	if err != nil {
		return nil, err
	}
	path := cfg.messagesSocket()
	if path == "" {
		return nil, errors.New("agent.messages_socket and state.dir are empty: the agent has no socket for messages")
	}
	return &messagesClient{&http.Client{Transport: &http.Transport{
		ExpectContinueTimeout: time.Minute,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
	}}}, nil
}

// errLater says that it may work when it is tried again.
var errLater = errors.New("not now")

// do sends a request. An answer that is a failure is an error; errLater where another attempt is worth while.
func (c *messagesClient) do(ctx context.Context, method, path string, size int64, body io.Reader) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, body)
	if err != nil {
		return nil, err
	}
	if body != nil {
		r.ContentLength = size
		r.Header.Set("Expect", "100-continue") // what is refused is not sent
		if size == 0 {
			r.Body = http.NoBody
		}
	}
	answer, err := c.http.Do(r)
	if err != nil {
		return nil, fmt.Errorf("%w: the agent: %w", errLater, err)
	}
	if answer.StatusCode < 300 {
		return answer, nil
	}
	defer answer.Body.Close()
	var f desk.Failure
	if err := json.NewDecoder(io.LimitReader(answer.Body, 64<<10)).Decode(&f); err != nil {
		return nil, fmt.Errorf("%w: the agent: %s", errLater, answer.Status)
	}
	switch answer.StatusCode {
	case http.StatusServiceUnavailable:
		return nil, fmt.Errorf("%w: %s", errLater, f.Error)
	case http.StatusUnprocessableEntity:
		return answer, errors.New(f.Error)
	}
	return nil, errors.New(f.Error)
}

func newTunnelSendCmd() *cobra.Command {
	var o sendOptions
	cmd := &cobra.Command{
		Use: "send DEVICE[,DEVICE...] FILE", Short: "Leave a file for devices: it waits at the relay, sealed, until they fetch it", Args: cobra.ExactArgs(2),
		Long: "It returns once the relay has the file on its disk. If the way there breaks, it goes on where it ended;\n" +
			"so does the same command after it was stopped. A file that was sent before is not sent again, unless --again.",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newMessagesClient(cmd)
			if err != nil {
				return err
			}
			o.to, o.file = strings.Split(args[0], ","), args[1]
			return o.send(cmd.Context(), c, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.Flags().DurationVar(&o.ttl, "ttl", 0, "how long it is kept; 0 = as long as the relay keeps anything")
	cmd.Flags().BoolVar(&o.discard, "discard", false, "do not keep it for devices that do not read their inbox now")
	cmd.Flags().BoolVar(&o.again, "again", false, "send it even if it was sent before")
	cmd.Flags().DurationVar(&o.tries, "try", 10*time.Minute, "for how long to try while nothing gets through")
	return cmd
}

type sendOptions struct {
	to             []string
	file           string
	ttl, tries     time.Duration
	discard, again bool
}

// send sends the file, and goes on after failures for as long as some of it gets through now and then.
func (o *sendOptions) send(ctx context.Context, c *messagesClient, out, progress io.Writer) error {
	f, err := os.Open(o.file)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%s is not a file", o.file)
	}
	path, err := o.path(st)
	if err != nil {
		return err
	}
	bar := newBar(progress, filepath.Base(o.file), st.Size())
	defer bar.end()
	for pause, last := time.Second, time.Now(); ; pause = min(2*pause, 30*time.Second) {
		before := bar.furthest()
		// A request that has failed may still read for a moment (http.RoundTripper): each reads for itself.
		answer, err := c.do(ctx, http.MethodPost, path, st.Size(), bar.reader(io.NewSectionReader(f, 0, st.Size())))
		if err == nil {
			defer answer.Body.Close()
			bar.end()
			return printSent(out, answer.Body)
		}
		if bar.furthest() > before {
			last, pause = time.Now(), time.Second
		}
		if !errors.Is(err, errLater) || time.Since(last) > o.tries {
			return err
		}
		bar.note(err.Error())
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// path returns the request, whose key is the same for the same file.
func (o *sendOptions) path(st os.FileInfo) (string, error) {
	abs, err := filepath.Abs(o.file)
	if err != nil {
		return "", err
	}
	key := fmt.Sprintf("%s\x00%d\x00%d", abs, st.Size(), st.ModTime().UnixNano())
	if o.again {
		key += "\x00" + strconv.FormatInt(time.Now().UnixNano(), 10)
	}
	sum := sha256.Sum256([]byte(key))
	q := url.Values{"to": o.to, "name": {filepath.Base(o.file)}, "key": {hex.EncodeToString(sum[:])}}
	if o.ttl > 0 {
		q.Set("ttl", o.ttl.String())
	}
	if o.discard {
		q.Set("discard", "true")
	}
	return "/v1/messages?" + q.Encode(), nil
}

func printSent(out io.Writer, body io.Reader) error {
	var sent desk.Sent
	if err := json.NewDecoder(body).Decode(&sent); err != nil {
		return err
	}
	text := "stored at the relay"
	if sent.Duplicate {
		text = "was stored at the relay before"
	}
	if sent.Discarded > 0 {
		text += fmt.Sprintf("; not for %d devices that are away", sent.Discarded)
	}
	_, err := fmt.Fprintf(out, "%s (message %s)\n", text, sent.ID)
	return err
}

// bar shows on a terminal how far a transfer is; elsewhere it shows nothing.
type bar struct {
	name string
	size int64

	mu    sync.Mutex // guards what follows
	out   io.Writer  // nil: no terminal
	now   int64
	most  int64 // the furthest that any attempt came
	drawn time.Time
}

func newBar(out io.Writer, name string, size int64) *bar {
	b := &bar{name: name, size: size}
	if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		b.out = out
	}
	return b
}

// reader counts what is read of r, from its beginning.
func (b *bar) reader(r io.Reader) io.Reader { return &barReader{r: r, b: b} }

func (b *bar) furthest() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.most
}

// came notes how far a transfer is.
func (b *bar) came(now int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.now = now
	b.most = max(b.most, b.now)
	if time.Since(b.drawn) > 100*time.Millisecond {
		b.drawLocked()
	}
}

type barReader struct {
	r  io.Reader
	b  *bar
	at int64
}

func (r *barReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.at += int64(n)
	r.b.came(r.at)
	return n, err
}

// Close is there so that an HTTP client does not close the file.
func (r *barReader) Close() error { return nil }

func (b *bar) drawLocked() {
	if b.out == nil {
		return
	}
	b.drawn = time.Now()
	const width = 30
	done := 1.0
	if b.size > 0 {
		done = float64(b.now) / float64(b.size)
	}
	full := int(done * width)
	fmt.Fprintf(b.out, "\r%s [%s%s] %3.0f %% of %.1f MiB\x1b[K", b.name, strings.Repeat("#", full), strings.Repeat(".", width-full), 100*done, float64(b.size)/(1<<20))
}

func (b *bar) note(text string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.out != nil {
		fmt.Fprintf(b.out, "\r%s\x1b[K\n", text)
	}
}

// end leaves the line of the bar.
func (b *bar) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.out != nil {
		b.drawLocked()
		fmt.Fprintln(b.out)
		b.out = nil
	}
}

func newTunnelInboxCmd() *cobra.Command {
	var watch bool
	var dir string
	cmd := &cobra.Command{
		Use: "inbox", Short: "Fetch what was left for this device into files, each once", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := newMessagesClient(cmd)
			if err != nil {
				return err
			}
			in := &inboxDir{dir: dir, client: c, out: cmd.OutOrStdout(), progress: cmd.ErrOrStderr()}
			return in.run(cmd.Context(), watch)
		},
	}
	cmd.Flags().BoolVar(&watch, "watch", false, "go on, and wait for more")
	cmd.Flags().StringVar(&dir, "to", ".", "the `DIR` for the files")
	return cmd
}

// inboxDir puts messages into a folder. What it has done stands in a file beside them, so that a message is put there once though
// the relay gives it again: before a file gets its name, the name and the message's number are on disk.
type inboxDir struct {
	dir      string
	client   *messagesClient
	out      io.Writer
	progress io.Writer
	state    inboxState
}

// inboxState is what the folder knows of a relay's store.
type inboxState struct {
	Store string `json:"store"`
	Done  uint64 `json:"done"` // the last message that is in the folder
	Next  uint64 `json:"next"` // the one that is being put there
	Name  string `json:"name"` // under this name
}

const (
	inboxFile = ".edged-inbox"
	inboxPart = ".edged-inbox.part"
)

func (in *inboxDir) run(ctx context.Context, watch bool) error {
	if err := os.MkdirAll(in.dir, 0o700); err != nil {
		return err
	}
	alone, err := in.lock()
	if err != nil {
		return err
	}
	defer alone.Close()
	b, err := os.ReadFile(filepath.Join(in.dir, inboxFile))
	if err == nil {
		err = json.Unmarshal(b, &in.state)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s: %w", inboxFile, err)
	}
	wait := "1s"
	if watch {
		wait = "5m"
	}
	for tries := 0; ctx.Err() == nil; {
		answer, err := in.client.do(ctx, http.MethodGet, "/v1/inbox?wait="+wait, 0, nil)
		switch {
		case err == nil && answer.StatusCode == http.StatusNoContent:
			if watch {
				continue
			}
			if empty, err := in.empty(ctx); err != nil || empty || tries == 10 {
				return err
			}
			tries++
			continue
		case err != nil && answer == nil:
			if !watch || !errors.Is(err, errLater) {
				return err
			}
			select {
			case <-ctx.Done():
			case <-time.After(5 * time.Second):
			}
			continue
		}
		if err := in.take(ctx, answer, err); err != nil && (!watch || !errors.Is(err, errLater)) {
			return err
		}
	}
	return nil
}

// empty asks the relay whether no whole message waits. That none has come may also mean that the way to the relay is broken.
func (in *inboxDir) empty(ctx context.Context) (bool, error) {
	answer, err := in.client.do(ctx, http.MethodGet, "/v1/status", 0, nil)
	if err != nil {
		return false, err
	}
	defer answer.Body.Close()
	var st desk.Status
	err = json.NewDecoder(answer.Body).Decode(&st)
	return st.Oldest == nil, err
}

// lock keeps others of its kind out of the folder until what it returns is closed: two would write the same files.
func (in *inboxDir) lock() (io.Closer, error) {
	d, err := os.Open(in.dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: another edged tunnel inbox fetches to it: %w", in.dir, err), d.Close())
	}
	return d, nil
}

// take puts one message into the folder, and acknowledges it. One that is forged is dropped.
func (in *inboxDir) take(ctx context.Context, answer *http.Response, forged error) error {
	defer answer.Body.Close()
	seq, err := strconv.ParseUint(answer.Header.Get("Edged-Seq"), 10, 64)
	if err != nil {
		return fmt.Errorf("the agent: Edged-Seq: %w", err)
	}
	if store := answer.Header.Get("Edged-Store"); store != in.state.Store {
		in.state = inboxState{Store: store}
	}
	from := answer.Header.Get("Edged-From-Name")
	if from == "" {
		from = answer.Header.Get("Edged-From")
	}
	switch {
	case forged != nil:
		fmt.Fprintf(in.out, "dropped a message from %s: %v\n", from, forged)
	case seq == 0 || seq > in.state.Done && !in.recovered(seq):
		name, err := in.save(answer, seq)
		if err != nil {
			return err
		}
		fmt.Fprintf(in.out, "%s from %s\n", name, from)
	}
	if seq == 0 {
		return nil
	}
	done, err := in.client.do(ctx, http.MethodDelete, "/v1/inbox?upto="+strconv.FormatUint(seq, 10), 0, nil)
	if err != nil {
		return err
	}
	return done.Body.Close()
}

// recovered tells whether a message got its name before the last run was stopped.
func (in *inboxDir) recovered(seq uint64) bool {
	if in.state.Next != seq {
		return false
	}
	_, part := os.Lstat(filepath.Join(in.dir, inboxPart))
	_, file := os.Lstat(filepath.Join(in.dir, in.state.Name))
	if !errors.Is(part, os.ErrNotExist) || file != nil {
		return false
	}
	in.state.Done = seq
	return true
}

// save writes a message into a file of its own.
func (in *inboxDir) save(answer *http.Response, seq uint64) (string, error) {
	part := filepath.Join(in.dir, inboxPart)
	f, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return "", err
	}
	name := in.freeName(answer.Header.Get("Edged-Name"), seq)
	bar := newBar(in.progress, name, answer.ContentLength)
	w := bufio.NewWriterSize(f, 1<<20)
	n, err := io.Copy(w, bar.reader(answer.Body))
	if err == nil && n != answer.ContentLength {
		err = io.ErrUnexpectedEOF
	}
	if err = errors.Join(err, w.Flush(), f.Sync(), f.Close()); err != nil {
		return "", fmt.Errorf("%w: %w", errLater, err)
	}
	bar.end()
	in.state.Next, in.state.Name = seq, name
	if err := in.write(); err != nil {
		return "", err
	}
	if err := os.Rename(part, filepath.Join(in.dir, name)); err != nil {
		return "", err
	}
	in.state.Done = max(in.state.Done, seq)
	return name, in.write()
}

// freeName makes a name of what the sender calls a file: its last part, without what shells and terminals take amiss, and not
// that of a file which is there.
func (in *inboxDir) freeName(escaped string, seq uint64) string {
	name, err := url.PathUnescape(escaped)
	if err != nil {
		name = ""
	}
	name = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == '/' || r == '\\' || r == 0xfffd { // controls, and what turns the order of letters round
			return '_'
		}
		return r
	}, name[strings.LastIndexAny(name, `/\`)+1:])
	if name = strings.TrimLeft(name, ".-"); name == "" || len(name) > 200 {
		name = fmt.Sprintf("message-%d", seq)
	}
	free := name
	for i := 1; ; i++ {
		if _, err := os.Lstat(filepath.Join(in.dir, free)); errors.Is(err, os.ErrNotExist) {
			return free
		}
		ext := filepath.Ext(name)
		free = fmt.Sprintf("%s (%d)%s", strings.TrimSuffix(name, ext), i, ext)
	}
}

// write puts the state on disk.
func (in *inboxDir) write() error {
	b, err := json.Marshal(in.state)
	if err != nil {
		return err
	}
	file := filepath.Join(in.dir, inboxFile)
	f, err := os.OpenFile(file+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(file+".new", file); err != nil {
		return err
	}
	d, err := os.Open(in.dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func newTunnelMailboxesCmd() *cobra.Command {
	var f clientFlags
	cmd := &cobra.Command{
		Use: "mailboxes", Short: "At the relay: show what waits for devices", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := newAPIClient(cmd, f)
			if err != nil {
				return err
			}
			return c.show(cmd, f, "/api/v1/mailboxes", printMailboxes)
		},
	}
	f.register(cmd)
	return cmd
}

func printMailboxes(out io.Writer, body []byte) error {
	var list []mailboxView
	if err := json.Unmarshal(body, &list); err != nil {
		return err
	}
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "DEVICE\tMESSAGES\tMiB\tOF\tREADERS\tOLDEST\tID")
	for _, v := range list {
		oldest := "-"
		if v.Oldest != nil {
			oldest = v.Oldest.Format(time.RFC3339)
		}
		fmt.Fprintf(w, "%s\t%d\t%.1f\t%.0f\t%d\t%s\t%s\n", v.Device, v.Messages, float64(v.Octets)/(1<<20), float64(v.Quota)/(1<<20), v.Readers, oldest, v.ID)
	}
	return w.Flush()
}

func newTunnelPurgeCmd() *cobra.Command {
	var f clientFlags
	cmd := &cobra.Command{
		Use: "purge DEVICE", Short: "At the relay: drop all that waits for a device, named by its name or ID", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newAPIClient(cmd, f)
			if err != nil {
				return err
			}
			body, err := c.ask(cmd.Context(), http.MethodDelete, "/api/v1/mailboxes?device="+url.QueryEscape(args[0]))
			if err != nil {
				return err
			}
			var n struct {
				Messages int `json:"messages"`
			}
			if err := json.Unmarshal(body, &n); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d messages dropped\n", n.Messages)
			return err
		},
	}
	f.register(cmd)
	return cmd
}
