package letter

import (
	"bytes"
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/hpke"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"

	"edged.dev/edged/pkg/tunnel/mailbox"
)

// ErrForged says that a letter is not what its sender has sealed, or not for this device.
var ErrForged = errors.New("letter: damaged or forged")

// Opener reads a sealed letter and gives its text. The text is the sender's only once Read has given io.EOF: the signature stands at
// the end. Before, it is known to come from somebody who has the content key.
type Opener struct {
	Meta []byte // likewise
	Size int64  // of the text

	r      io.Reader
	id     mailbox.ID
	from   mailbox.Device
	public ed25519.PublicKey
	to     []mailbox.Device
	aead   cipher.AEAD
	hash   hash.Hash
	next   int64
	buf    []byte
	left   []byte
	err    error
}

// Open begins to open a sealed letter of size octets, which a relay says has this number and sender.
func (k *Key) Open(r io.Reader, size int64, id mailbox.ID, from mailbox.Device) (*Opener, error) {
	o := &Opener{r: r, id: id, from: from, hash: sha256.New()}
	read, err := k.readHead(o)
	if err != nil {
		return nil, err
	}
	if o.Size = textSize(size - read); o.Size < 0 {
		return nil, ErrForged
	}
	o.buf = make([]byte, min(o.Size, chunkLen)+max(sealOverhead, trailerLen))
	return o, nil
}

// textSize returns the length of a text of whose letter, without the head, this much there is; negative if none fits.
func textSize(rest int64) int64 {
	rest -= trailerLen
	n := (rest + sealedChunk - 1) / sealedChunk
	size := rest - n*sealOverhead
	if rest < 0 || chunks(max(size, 0)) != n {
		return -1
	}
	return size
}

// readHead reads the head, and opens content key and meta data. It returns the head's length.
func (k *Key) readHead(o *Opener) (int64, error) {
	var fixed [fixedHead]byte
	if _, err := io.ReadFull(o.r, fixed[:]); err != nil {
		return 0, cut(err)
	}
	o.public = bytes.Clone(fixed[1 : 1+ed25519.PublicKeySize])
	n := int(binary.BigEndian.Uint16(fixed[fixedHead-2:]))
	if fixed[0] != version || sha256.Sum256(o.public) != o.from || n == 0 || n > mailbox.MaxRecipients {
		return 0, ErrForged
	}
	list := make([]byte, n*recipientLen+2)
	if _, err := io.ReadFull(o.r, list); err != nil {
		return 0, cut(err)
	}
	metaLen := int(binary.BigEndian.Uint16(list[len(list)-2:]))
	if metaLen > MaxMeta {
		return 0, ErrForged
	}
	if err := k.openKey(o, list[:n*recipientLen]); err != nil {
		return 0, err
	}
	sealed := make([]byte, metaLen+sealOverhead)
	if _, err := io.ReadFull(o.r, sealed); err != nil {
		return 0, cut(err)
	}
	var err error
	if o.Meta, err = o.aead.Open(nil, nil, sealed, place(metaIndex, false)); err != nil {
		return 0, ErrForged
	}
	return int64(len(fixed) + len(list) + len(sealed)), nil
}

// openKey finds this device in the list, and opens the content key.
func (k *Key) openKey(o *Opener, list []byte) error {
	me := k.Device()
	for ; len(list) > 0; list = list[recipientLen:] {
		d := mailbox.Device(list)
		o.to = append(o.to, d)
		if d != me || o.aead != nil {
			continue
		}
		key, err := hpke.Open(k.private, hpke.HKDFSHA256(), hpke.AES256GCM(), hpkeInfo(o.from, me, o.id), list[32:recipientLen])
		if err != nil || len(key) != 32 {
			return ErrForged
		}
		if o.aead, err = newAEAD(key); err != nil {
			return fmt.Errorf("letter: %w", err)
		}
	}
	if o.aead == nil {
		return ErrForged
	}
	return nil
}

// cut tells the early end of a letter from errors of the way it comes.
func cut(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return ErrForged
	}
	return fmt.Errorf("letter: %w", err)
}

// Read gives octets of the text; io.EOF once all of it and the signature were found right.
func (o *Opener) Read(b []byte) (int, error) {
	if len(o.left) == 0 && o.err == nil {
		o.left, o.err = o.chunk()
	}
	if len(o.left) == 0 {
		return 0, o.err
	}
	n := copy(b, o.left)
	o.left = o.left[n:]
	return n, nil
}

// chunk opens the next chunk, or verifies the trailer.
func (o *Opener) chunk() ([]byte, error) {
	rest := o.Size - o.next*chunkLen
	trailer, want := rest <= 0, trailerLen
	if !trailer {
		want = int(min(rest, chunkLen)) + sealOverhead
	}
	sealed := o.buf[:want]
	if _, err := io.ReadFull(o.r, sealed); err != nil {
		return nil, cut(err)
	}
	plain, err := o.aead.Open(nil, nil, sealed, place(uint64(o.next), trailer))
	if err != nil {
		return nil, ErrForged
	}
	o.next++
	if !trailer {
		o.hash.Write(plain)
		return plain, nil
	}
	if !ed25519.Verify(o.public, signed(o.from, o.id, o.to, o.Meta, o.Size, o.hash.Sum(nil)), plain) {
		return nil, ErrForged
	}
	return nil, io.EOF
}
