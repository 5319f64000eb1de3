package carrier

import (
	"bytes"
	"net"
	"testing"
)

// pieces remembers what each Write got.
type pieces struct {
	net.Conn
	got [][]byte
}

func (p *pieces) Write(b []byte) (int, error) {
	p.got = append(p.got, bytes.Clone(b))
	return len(b), nil
}

// Records that are held go out together, in order; what is more than fits is not held back.
func TestHeldRecords(t *testing.T) {
	below := &pieces{}
	c := &recordConn{Conn: below}
	var want []byte
	write := func(n int, fill byte) {
		t.Helper()
		b := bytes.Repeat([]byte{fill}, n)
		want = append(want, b...)
		if m, err := c.Write(b); m != n || err != nil {
			t.Fatal(m, err)
		}
	}
	writes := func(n int) {
		t.Helper()
		if len(below.got) != n {
			t.Fatalf("%d writes, want %d", len(below.got), n)
		}
		if n > 0 && !bytes.Equal(bytes.Join(below.got, nil), want) {
			t.Fatal("other bytes")
		}
	}
	c.hold()
	for i := range together {
		write(recordLen+22, byte(i))
	}
	writes(0)
	if err := c.release(); err != nil {
		t.Fatal(err)
	}
	writes(1)
	write(5, 'x') // not held
	writes(2)
	c.hold()
	for range together {
		write(recordLen+recordMore, 'y')
	}
	writesBefore := len(below.got)
	write(1, 'z')
	writes(writesBefore + 2)
	if err := c.release(); err != nil {
		t.Fatal(err)
	}
	writes(writesBefore + 2)
}
