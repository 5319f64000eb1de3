package tftp

import (
	"crypto/hmac"
	"crypto/rc4"
	"crypto/sha1"
	"encoding/base64"
	"testing"

	"edged.dev/edged/pkg/tftp/content"
)

const (
	encryptionKey = "MvNVAwmfdQq3a+aoh8V2NWj0YUPlYJMy"
	hashKey       = "VhVPjEoFA335WIAC+PYMr2HyV+i3zR0f"
)

// conceal returns a file as clients send it, and its MAC.
func conceal(t *testing.T, file string) (wire, mac string) {
	t.Helper()
	digest := func(key string) []byte {
		raw, err := base64.StdEncoding.DecodeString(key)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha1.Sum(raw)
		return sum[:16]
	}
	cipher, err := rc4.NewCipher(digest(encryptionKey))
	if err != nil {
		t.Fatal(err)
	}
	out := make([]byte, len(file))
	cipher.XORKeyStream(out, []byte(file))
	h := hmac.New(sha1.New, digest(hashKey))
	h.Write([]byte(file))
	return string(out), base64.StdEncoding.EncodeToString(h.Sum(nil))
}

// TestContent: the keys that the invitations bring are those with which a file is looked at.
func TestContent(t *testing.T) {
	keys := "Encryption-Key: " + encryptionKey + "\r\nHash-Key: " + hashKey + "\r\n"
	types := content.DefaultConfig()
	types.Types = []string{"executable"}
	verify := content.DefaultConfig()
	verify.Verify = true
	for name, tt := range map[string]struct {
		cfg        content.Config
		file, keys string
		otherMAC   bool
		want       string // the result, "" if the acceptance is cancelled
	}{
		"harmless":           {types, "text", keys, false, "completed"},
		"executable":         {types, "MZ\x90\x00", keys, false, content.ReasonType},
		"MAC":                {verify, "text", keys, false, "completed"},
		"wrong MAC":          {verify, "text", keys, true, content.ReasonMAC},
		"no keys":            {types, "text", "", false, ""},
		"keys are no base64": {types, "text", "Encryption-Key: !\r\nHash-Key: !\r\n", false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			cfg := w.e.cfg
			cfg.Content = tt.cfg
			if err := w.e.Reload(cfg); err != nil {
				t.Fatal(err)
			}
			w.file, w.mac = conceal(t, tt.file)
			if tt.otherMAC {
				w.mac = "AAAAAAAAAAAAAAAAAAAAAAAAAAA="
			}
			w.say("alice bob alice bob", invite("1", textFile))
			w.say("bob alice bob alice", "Invitation-Command: ACCEPT\r\nInvitation-Cookie: 1\r\n"+tt.keys)
			v := w.say("alice bob alice bob", accept("1", "192.0.2.7", 6891))
			if tt.want == "" {
				if !cancelled(v) || w.e.count.denials[reasonKeys] != 1 || w.opener.Count() != 0 {
					t.Fatalf("%q, %v", v.Body, w.e.count.denials)
				}
				return
			}
			w.connect()
			if len(w.records) != 1 || w.records[0].Result != tt.want {
				t.Fatalf("%+v", w.records)
			}
		})
	}
}
