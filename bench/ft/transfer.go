package main

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/rc4"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"edged.dev/edged/bench/veth"
)

const (
	authCookie = 863489474
	// fileSize is that of a file that is longer than any measurement.
	fileSize  = 1 << 40
	smallSize = 1 << 20
	smallRuns = 15
	// blockSize is how much real clients put into a block.
	blockSize = 2045
	// warm is how long a transfer runs before it is measured.
	warm = 300 * time.Millisecond
)

// clients are alice and bob, and her listener for files.
type clients struct {
	alice, bob party
	files      net.Listener
	calls      int
	sunk       atomic.Uint64
	// mac is that of the small file.
	mac string
}

func (r *rig) clients() (*clients, error) {
	c := &clients{} // what is opened before an error ends with the process
	listen := func(ns, at string) (ln net.Listener, err error) {
		err = veth.Within(ns, func() error {
			ln, err = net.Listen("tcp", at)
			return err
		})
		return ln, err
	}
	var err error
	if c.mac, err = smallMAC(); err != nil {
		return nil, err
	}
	if c.files, err = listen(r.Client, fmt.Sprintf("%s:%d", veth.ClientIP, clientPort)); err != nil {
		return nil, err
	}
	c.alice.uri, c.bob.uri = "alice@example.net", "bob@example.org"
	if c.alice.ln, err = listen(r.Client, fmt.Sprintf("%s:%d", veth.ClientIP, sipPort)); err != nil {
		return nil, err
	}
	if c.bob.ln, err = listen(r.Server, fmt.Sprintf("%s:%d", veth.ServerIP, sipPort)); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *clients) close() {
	c.files.Close()
	c.alice.ln.Close()
	c.bob.ln.Close()
}

func (r *rig) dial(ns, to string) (c net.Conn, err error) {
	err = veth.Within(ns, func() error {
		c, err = net.DialTimeout("tcp", to, 2*time.Second)
		return err
	})
	return c, err
}

// speaker says and hears lines.
type speaker struct {
	net.Conn
	r *bufio.Reader
}

func newSpeaker(c net.Conn) speaker {
	c.SetDeadline(time.Now().Add(time.Minute))
	return speaker{c, bufio.NewReader(c)}
}

// script says the lines that begin with ">", and hears those that begin with "<".
func (s speaker) script(lines ...string) error {
	for _, l := range lines {
		if l[0] == '>' {
			if _, err := io.WriteString(s, l[1:]+"\r\n"); err != nil {
				return err
			}
			continue
		}
		got, err := s.r.ReadString('\n')
		if err != nil || strings.TrimRight(got, "\x00\r\n") != l[1:] {
			return fmt.Errorf("%q instead of %q: %w", got, l[1:], err)
		}
	}
	return nil
}

// blocks returns as many blocks as fit into a write of some 128 KiB.
func blocks() []byte {
	var b []byte
	for range 64 {
		b = append(b, 0, blockSize&255, blockSize>>8)
		b = append(b, make([]byte, blockSize)...)
	}
	return b
}

// send is alice: she takes one connection and sends a file of so many octets; more than can be sent ends with an error.
func (c *clients) send(size int64) error {
	conn, err := c.files.Accept()
	if err != nil {
		return err
	}
	defer conn.Close()
	s := newSpeaker(conn)
	err = s.script("<VER MSN_SECURE_FTP", ">VER MSN_SECURE_FTP", fmt.Sprintf("<USR bob@example.org %d", authCookie), fmt.Sprintf(">FIL %d", size), "<TFR")
	if err != nil {
		return err
	}
	many := blocks()
	for left := size; left > 0; {
		if left >= 64*blockSize {
			_, err = conn.Write(many)
			left -= 64 * blockSize
		} else {
			n := min(left, blockSize)
			_, err = conn.Write(append([]byte{0, byte(n), byte(n >> 8)}, many[3:3+n]...))
			left -= n
		}
		if err != nil {
			return err
		}
	}
	return s.script("<BYE 16777989", ">MAC "+c.mac+"\x00")
}

// key returns a key of the invitation in base64.
func key(n byte) string { return base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{n}, 24)) }

// smallMAC returns the MAC of the small file, which is nothing but zeros where it is encrypted.
func smallMAC() (string, error) {
	sum := sha1.Sum(bytes.Repeat([]byte{1}, 24))
	c, err := rc4.NewCipher(sum[:16])
	if err != nil {
		return "", err
	}
	plain := make([]byte, smallSize)
	c.XORKeyStream(plain, plain)
	sum = sha1.Sum(bytes.Repeat([]byte{2}, 24))
	h := hmac.New(sha1.New, sum[:16])
	h.Write(plain)
	return base64.StdEncoding.EncodeToString(h.Sum(nil)), nil
}

// greet is bob up to TFR.
func greet(conn net.Conn, size int64) (speaker, error) {
	s := newSpeaker(conn)
	return s, s.script(">VER MSN_SECURE_FTP", "<VER MSN_SECURE_FTP", fmt.Sprintf(">USR bob@example.org %d", authCookie), fmt.Sprintf("<FIL %d", size), ">TFR")
}

// sink discards what comes without copying it (MSG_TRUNC), and counts it.
func (c *clients) sink(conn *net.TCPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	b := make([]byte, 1<<20)
	for {
		n := 0
		err := raw.Read(func(fd uintptr) bool {
			var errno error
			n, _, errno = syscall.Recvfrom(int(fd), b, syscall.MSG_TRUNC|syscall.MSG_DONTWAIT)
			return !errors.Is(errno, syscall.EAGAIN)
		})
		if err != nil || n <= 0 {
			return err
		}
		c.sunk.Add(uint64(n))
	}
}

// figures are what one round measured of one gateway.
type figures struct {
	// gbits is Gb/s, cpu the gateway's CPU seconds per GB (10⁹ octets), small the ms that a small file takes.
	gbits, cpu, small float64
}

func (f figures) String() string {
	return fmt.Sprintf("%5.2f Gb/s, %.3f s/GB; 1 MiB in %.2f ms", f.gbits, f.cpu, f.small)
}

func (r *rig) measure(g gateway, c *clients, d time.Duration) (f figures, err error) {
	stop, err := g.start()
	if err != nil {
		return f, err
	}
	defer func() {
		stop()
		c.alice.hangUp()
		c.bob.hangUp()
	}()
	var took []float64
	for range smallRuns {
		ms, err := r.small(g, c)
		if err != nil {
			return f, fmt.Errorf("small file: %w", err)
		}
		took = append(took, ms)
	}
	slices.Sort(took)
	f.small = took[len(took)/2]
	if err := r.bulk(g, c, d, &f); err != nil {
		return f, fmt.Errorf("large file: %w", err)
	}
	return f, nil
}

// small returns how many milliseconds a small file takes, from bob's dialling to the end.
func (r *rig) small(g gateway, c *clients) (float64, error) {
	sent := make(chan error, 1)
	at, done, err := g.invite(c)
	if err != nil {
		return 0, err
	}
	defer done()
	// Not within the time: making a thread for the namespace, and the gateway's start.
	if err := r.ready(at, g.name); err != nil {
		return 0, err
	}
	var began time.Time
	go func() { sent <- c.send(smallSize) }()
	var conn net.Conn
	err = veth.Within(r.Server, func() error {
		began = time.Now()
		conn, err = net.DialTimeout("tcp", at, 2*time.Second)
		return err
	})
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	s, err := greet(conn, smallSize)
	if err != nil {
		return 0, err
	}
	wire := int64(smallSize + (smallSize+blockSize-1)/blockSize*3)
	if _, err := io.CopyN(io.Discard, s.r, wire); err != nil {
		return 0, err
	}
	err = s.script(">BYE 16777989", "<MAC "+c.mac)
	ms := float64(time.Since(began).Microseconds()) / 1e3
	return ms, errors.Join(err, <-sent)
}

// ready waits until HAProxy listens; edged does when it has answered the invitation.
func (r *rig) ready(at, name string) error {
	if strings.HasPrefix(name, edged) {
		return nil
	}
	var err error
	for range 100 {
		if _, err = veth.Run("ip", "netns", "exec", r.Gateway, "sh", "-c", fmt.Sprintf("ss -Hltn sport = :%d | grep -q .", gatePort)); err == nil {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("%s does not listen: %w", at, err)
}

// bulk measures a transfer that does not end.
func (r *rig) bulk(g gateway, c *clients, d time.Duration, f *figures) error {
	at, done, err := g.invite(c)
	if err != nil {
		return err
	}
	defer done()
	sent, sunk := make(chan error, 1), make(chan error, 1)
	go func() { sent <- c.send(fileSize) }()
	conn, err := r.dial(r.Server, at)
	if err != nil {
		return err
	}
	s, err := greet(conn, fileSize)
	if err != nil {
		conn.Close()
		return err
	}
	c.sunk.Store(uint64(s.r.Buffered()))
	go func() { sunk <- c.sink(conn.(*net.TCPConn)) }()
	time.Sleep(warm)
	cpu, err := r.CPU()
	if err != nil {
		return err
	}
	n, began := c.sunk.Load(), time.Now()
	time.Sleep(d)
	took, n := time.Since(began), c.sunk.Load()-n
	after, err := r.CPU()
	conn.Close()
	<-sunk
	<-sent // ends with an error, as nobody receives any more
	if err != nil || n == 0 {
		return fmt.Errorf("%d octets came: %w", n, err)
	}
	f.gbits, f.cpu = float64(n)*8/took.Seconds()/1e9, (after-cpu).Seconds()/(float64(n)/1e9)
	return nil
}
