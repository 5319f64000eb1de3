package letter

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/hpke"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"

	"edged.dev/edged/pkg/tunnel/mailbox"
)

const (
	version      = 1
	chunkLen     = 64 << 10
	sealOverhead = 12 + 16 // nonce and tag
	sealedChunk  = chunkLen + sealOverhead
	trailerLen   = ed25519.SignatureSize + sealOverhead
	fixedHead    = 1 + ed25519.PublicKeySize + 2
	recipientLen = 32 + 32 + 48
	// MaxMeta is the longest meta data.
	MaxMeta = 4096

	letterLabel = "edged letter v1"
	metaIndex   = math.MaxUint64 // the place of the meta data among the chunks, for their AEAD
)

// Letter is what is sealed.
type Letter struct {
	ID   mailbox.ID
	To   []Card
	Meta []byte // for the recipients: a name, a type
	Size int64  // of the text
}

func (l *Letter) headLen() int64 {
	return int64(fixedHead + len(l.To)*recipientLen + 2 + len(l.Meta) + sealOverhead)
}

// chunks returns how many chunks a text has; an empty one has none.
func chunks(size int64) int64 { return (size + chunkLen - 1) / chunkLen }

// SealedSize returns how long the sealed letter is.
func (l *Letter) SealedSize() int64 {
	return l.headLen() + l.Size + chunks(l.Size)*sealOverhead + trailerLen
}

// Boundary returns from where a sealed letter can be gone on with, of which offset octets were sent.
func (l *Letter) Boundary(offset int64) int64 {
	head := l.headLen()
	switch trailer := l.SealedSize() - trailerLen; {
	case offset < head:
		return 0
	case offset >= trailer:
		return trailer
	}
	return head + (offset-head)/sealedChunk*sealedChunk
}

func (l *Letter) check() error {
	switch {
	case len(l.To) == 0 || len(l.To) > mailbox.MaxRecipients:
		return fmt.Errorf("letter: %d recipients, want 1 to %d", len(l.To), mailbox.MaxRecipients)
	case len(l.Meta) > MaxMeta:
		return fmt.Errorf("letter: %d octets of meta data, at most %d", len(l.Meta), MaxMeta)
	case l.Size < 0:
		return errors.New("letter: negative size")
	}
	return nil
}

// signed is what the sender's signature is over.
func signed(from mailbox.Device, id mailbox.ID, to []mailbox.Device, meta []byte, size int64, text []byte) []byte {
	b := append([]byte(letterLabel), from[:]...)
	b = binary.BigEndian.AppendUint64(b, id.Epoch)
	b = binary.BigEndian.AppendUint64(b, id.Counter)
	b = binary.BigEndian.AppendUint16(b, uint16(len(to)))
	for _, d := range to {
		b = append(b, d[:]...)
	}
	sum := sha256.Sum256(meta)
	b = binary.BigEndian.AppendUint64(append(b, sum[:]...), uint64(size))
	return append(b, text...)
}

// contentKey is the letter's own key, the same each time that it is sealed. Nonces are random, so that even another text
// under the same number would not harm it.
func (k *Key) contentKey(l *Letter) ([]byte, error) {
	var to []mailbox.Device
	for _, c := range l.To {
		to = append(to, c.device)
	}
	return hkdf.Key(sha256.New, k.secret, nil, string(signed(k.Device(), l.ID, to, l.Meta, l.Size, nil)), 32)
}

func newAEAD(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// place is the additional data of a chunk: where it stands, and whether it is the trailer.
func place(index uint64, trailer bool) []byte {
	b := binary.BigEndian.AppendUint64(nil, index)
	if trailer {
		return append(b, 1)
	}
	return append(b, 0)
}

// hpkeInfo binds the content key to a letter and a recipient.
func hpkeInfo(from, to mailbox.Device, id mailbox.ID) []byte {
	b := append([]byte(letterLabel), from[:]...)
	b = append(b, to[:]...)
	b = binary.BigEndian.AppendUint64(b, id.Epoch)
	return binary.BigEndian.AppendUint64(b, id.Counter)
}

// Sealer reads a text and gives the sealed letter.
type Sealer struct {
	k     *Key
	l     Letter
	text  io.Reader
	aead  cipher.AEAD
	hash  hash.Hash
	next  int64 // chunk
	left  []byte
	plain []byte
	out   []byte
	done  bool
}

// Seal begins to seal a letter, from an offset on that Boundary gave. The text is read from its beginning in any case: its
// hash is signed.
func (k *Key) Seal(l Letter, text io.Reader, from int64) (*Sealer, error) {
	if err := l.check(); err != nil {
		return nil, err
	}
	if from != l.Boundary(from) {
		return nil, fmt.Errorf("letter: it cannot be gone on with at %d", from)
	}
	key, err := k.contentKey(&l)
	if err != nil {
		return nil, fmt.Errorf("letter: %w", err)
	}
	s := &Sealer{k: k, l: l, text: text, hash: sha256.New(), plain: make([]byte, chunkLen)}
	if s.aead, err = newAEAD(key); err != nil {
		return nil, fmt.Errorf("letter: %w", err)
	}
	if from == 0 {
		s.left, err = s.head(key)
		return s, err
	}
	s.next = min((from-l.headLen()+sealedChunk-1)/sealedChunk, chunks(l.Size))
	if _, err := io.CopyN(s.hash, text, min(s.next*chunkLen, l.Size)); err != nil {
		return nil, fmt.Errorf("letter: text: %w", err)
	}
	return s, nil
}

func (s *Sealer) head(key []byte) ([]byte, error) {
	b := append([]byte{version}, s.k.public...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(s.l.To)))
	for _, c := range s.l.To {
		info := hpkeInfo(s.k.Device(), c.device, s.l.ID)
		sealed, err := hpke.Seal(c.public, hpke.HKDFSHA256(), hpke.AES256GCM(), info, key) // enc and ciphertext
		if err != nil {
			return nil, fmt.Errorf("letter: recipient: %w", err)
		}
		b = append(append(b, c.device[:]...), sealed...)
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(s.l.Meta)))
	return s.aead.Seal(b, nil, s.l.Meta, place(metaIndex, false)), nil //nolint:gosec // the nonce is made inside
}

// Read gives octets of the sealed letter. A text that is shorter than said is an error.
func (s *Sealer) Read(b []byte) (int, error) {
	for len(s.left) == 0 {
		if s.done {
			return 0, io.EOF
		}
		if err := s.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(b, s.left)
	s.left = s.left[n:]
	return n, nil
}

func (s *Sealer) fill() error {
	rest := s.l.Size - s.next*chunkLen
	if rest <= 0 {
		var to []mailbox.Device
		for _, c := range s.l.To {
			to = append(to, c.device)
		}
		signature := s.k.sign(signed(s.k.Device(), s.l.ID, to, s.l.Meta, s.l.Size, s.hash.Sum(nil)))
		s.left = s.aead.Seal(s.out[:0], nil, signature, place(uint64(s.next), true)) //nolint:gosec // the nonce is made inside
		s.done = true
		return nil
	}
	plain := s.plain[:min(rest, chunkLen)]
	if _, err := io.ReadFull(s.text, plain); err != nil {
		return fmt.Errorf("letter: text: %w", err)
	}
	s.hash.Write(plain)
	s.out = s.aead.Seal(s.out[:0], nil, plain, place(uint64(s.next), false)) //nolint:gosec // the nonce is made inside
	s.left = s.out
	s.next++
	return nil
}
