package letter

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"io"
	"testing"

	"edged.dev/edged/pkg/tunnel/mailbox"
)

func newKey(t testing.TB, n byte) *Key {
	t.Helper()
	private := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, ed25519.SeedSize))
	k, err := NewKey(private.Public().(ed25519.PublicKey), func(b []byte) []byte { return ed25519.Sign(private, b) })
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func card(t testing.TB, k *Key) Card {
	t.Helper()
	c, err := ReadCard(k.Card(), k.Device())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func seal(t testing.TB, k *Key, l Letter, text []byte, from int64) []byte {
	t.Helper()
	s, err := k.Seal(l, bytes.NewReader(text), from)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func open(k *Key, b []byte, id mailbox.ID, from mailbox.Device) (meta, text []byte, err error) {
	o, err := k.Open(bytes.NewReader(b), int64(len(b)), id, from)
	if err != nil {
		return nil, nil, err
	}
	text, err = io.ReadAll(o)
	return o.Meta, text, err
}

func TestLetter(t *testing.T) {
	alice, bob, carol, eve := newKey(t, 1), newKey(t, 2), newKey(t, 3), newKey(t, 4)
	for _, size := range []int{0, 1, chunkLen - 1, chunkLen, chunkLen + 1, 3*chunkLen + 5} {
		text := bytes.Repeat([]byte{'x', 'y', 'z'}, size/3+1)[:size]
		l := Letter{ID: mailbox.ID{Epoch: 5, Counter: 6}, To: []Card{card(t, bob), card(t, carol)}, Meta: []byte("name"), Size: int64(size)}
		b := seal(t, alice, l, text, 0)
		if int64(len(b)) != l.SealedSize() {
			t.Fatalf("%d octets are sealed as %d, not %d", size, len(b), l.SealedSize())
		}
		for _, k := range []*Key{bob, carol} {
			if meta, got, err := open(k, b, l.ID, alice.Device()); err != nil || string(meta) != "name" || !bytes.Equal(got, text) {
				t.Fatalf("%d octets: %q, %d octets, %v", size, meta, len(got), err)
			}
		}
		for name, open := range map[string]func() error{
			"by another":     func() error { _, _, err := open(eve, b, l.ID, alice.Device()); return err },
			"other number":   func() error { _, _, err := open(bob, b, mailbox.ID{Epoch: 5, Counter: 7}, alice.Device()); return err },
			"other sender":   func() error { _, _, err := open(bob, b, l.ID, eve.Device()); return err },
			"one octet less": func() error { _, _, err := open(bob, b[:len(b)-1], l.ID, alice.Device()); return err },
			"one more":       func() error { _, _, err := open(bob, append(bytes.Clone(b), 0), l.ID, alice.Device()); return err },
		} {
			if err := open(); !errors.Is(err, ErrForged) {
				t.Errorf("%d octets, %s: %v", size, name, err)
			}
		}
	}
}

// TestEveryOctetCounts changes each octet of a letter in turn.
func TestEveryOctetCounts(t *testing.T) {
	alice, bob := newKey(t, 1), newKey(t, 2)
	l := Letter{ID: mailbox.ID{Epoch: 1, Counter: 1}, To: []Card{card(t, bob)}, Meta: []byte("m"), Size: 20}
	b := seal(t, alice, l, make([]byte, 20), 0)
	for i := range b {
		wrong := bytes.Clone(b)
		wrong[i] ^= 1
		if _, _, err := open(bob, wrong, l.ID, alice.Device()); !errors.Is(err, ErrForged) {
			t.Errorf("octet %d of %d: %v", i, len(b), err)
		}
	}
}

// TestRecipientCannotForge has a recipient, who has the content key, write another text.
func TestRecipientCannotForge(t *testing.T) {
	alice, bob, carol := newKey(t, 1), newKey(t, 2), newKey(t, 3)
	l := Letter{ID: mailbox.ID{Epoch: 1, Counter: 1}, To: []Card{card(t, bob), card(t, carol)}, Size: 3}
	b := seal(t, alice, l, []byte("yes"), 0)
	o, err := bob.Open(bytes.NewReader(b), int64(len(b)), l.ID, alice.Device())
	if err != nil {
		t.Fatal(err)
	}
	at := l.headLen()
	o.aead.Seal(b[at:at], nil, []byte("no!"), place(0, false))
	if _, _, err := open(carol, b, l.ID, alice.Device()); !errors.Is(err, ErrForged) {
		t.Errorf("a text that the sender has not signed: %v", err)
	}
}

// TestResume cuts a letter everywhere and seals the rest anew, with other nonces and a key that was derived again.
func TestResume(t *testing.T) {
	bob := newKey(t, 2)
	text := bytes.Repeat([]byte("0123456789"), 3*chunkLen/10)
	l := Letter{ID: mailbox.ID{Epoch: 1, Counter: 1}, To: []Card{card(t, bob)}, Size: int64(len(text))}
	b := seal(t, newKey(t, 1), l, text, 0)
	for _, cut := range []int{0, 10, int(l.headLen()), int(l.headLen()) + 1, int(l.headLen()) + sealedChunk, 150_000, len(b) - trailerLen, len(b) - 1, len(b)} {
		from := l.Boundary(int64(cut))
		if from > int64(cut) {
			t.Fatalf("after %d it goes on at %d", cut, from)
		}
		again := append(bytes.Clone(b[:from]), seal(t, newKey(t, 1), l, text, from)...)
		if _, got, err := open(bob, again, l.ID, newKey(t, 1).Device()); err != nil || !bytes.Equal(got, text) {
			t.Errorf("cut at %d, gone on with at %d: %v", cut, from, err)
		}
	}
	if _, err := newKey(t, 1).Seal(l, bytes.NewReader(text), 7); err == nil {
		t.Error("it goes on in the middle of the head")
	}
}

func TestCard(t *testing.T) {
	alice, bob := newKey(t, 1), newKey(t, 2)
	if _, err := ReadCard(alice.Card(), bob.Device()); !errors.Is(err, ErrCard) {
		t.Errorf("another's card: %v", err)
	}
	for i := range alice.Card() {
		wrong := alice.Card()
		wrong[i] ^= 1
		if _, err := ReadCard(wrong, alice.Device()); !errors.Is(err, ErrCard) {
			t.Errorf("octet %d: %v", i, err)
		}
	}
}

func FuzzOpen(f *testing.F) {
	alice, bob := newKey(f, 1), newKey(f, 2)
	l := Letter{ID: mailbox.ID{Epoch: 1, Counter: 1}, To: []Card{card(f, bob)}, Meta: []byte("m"), Size: 20}
	f.Add(seal(f, alice, l, make([]byte, 20), 0))
	f.Add(seal(f, alice, Letter{ID: l.ID, To: l.To}, nil, 0))
	f.Add(alice.Card())
	f.Fuzz(func(t *testing.T, b []byte) {
		_, text, err := open(bob, b, l.ID, alice.Device())
		if err == nil && len(text) != 20 && len(text) != 0 {
			t.Errorf("a letter that nobody has sealed: %q", text)
		}
		if _, err := ReadCard(b, alice.Device()); err == nil && !bytes.Equal(b, alice.Card()) {
			t.Errorf("a card that nobody has signed: %x", b)
		}
	})
}
