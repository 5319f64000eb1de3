package tftp

import "testing"

// TestNames: what a user's system would open as an executable is found under every disguise that we know.
func TestNames(t *testing.T) {
	deny := []string{"exe", "scr", "js"}
	for name, ok := range map[string]bool{
		"report.pdf":                       true,
		"exe":                              true, // no extension at all
		"a.b.c":                            true,
		"Grüße aus Köln.txt":               true,
		"a.exec":                           true,
		".bashrc":                          true,
		"a.exe":                            false,
		"A.EXE":                            false,
		"a.ExE ":                           false,
		"a.exe.":                           false,
		"a.exe. . .":                       false,
		"a.exe\u00a0":                      false,
		"a. exe":                           false,
		"a.exe.txt":                        false,
		"a.exe .txt":                       false,
		".exe":                             false,
		"a.ｅｘｅ":                            false, // fullwidth
		"a．exe":                            false, // fullwidth dot
		"a․exe":                            false, // one dot leader
		"a.ex\u200be":                      false, // zero width space
		"a.e\u00adxe":                      false, // soft hyphen
		"a.e\ufe0fxe":                      false, // variation selector
		"a.\U0001d41e\U0001d431\U0001d41e": false, // mathematical letters
		"a.ſcr":                            false, // long s
		"a.{3050f4d8-98b5-11cf-bb82-00aa00bdce0b}": false,
		"evil\u202etxt.exe":                        false,
		"evil\u202efdp.bin":                        false, // turns the text around
		"a\u2066b.txt":                             false,
		"dir/a.txt":                                false,
		`dir\a.txt`:                                false,
		"..":                                       false,
		".":                                        false,
		" ":                                        false,
		"":                                         false,
		"a∕b.txt":                                  false, // division slash
		"a／b.txt":                                  false,
		"a＼b.txt":                                  false,
		"a⁄b.txt":                                  false,
		"℅.txt":                                    false, // care of: composed of c, /, o
		"a.txt:evil.exe":                           false,
		"a.txt\x00.exe":                            false,
		"a\tb.txt":                                 false,
		"a\u0085.txt":                              false,
		"a\xff.txt":                                false,
	} {
		parts, plain := extensions(name)
		if got := plain && extensionAllowed(parts, deny, nil); got != ok {
			t.Errorf("%q: allowed %v (%q, plain %v), want %v", name, got, parts, plain, ok)
		}
	}
}

func TestAllowList(t *testing.T) {
	for name, ok := range map[string]bool{"a.txt": true, "a.TXT.": true, "a.v1.txt": true, "a.txt.zip": false, "txt": false, "a.exe.txt": false} {
		parts, plain := extensions(name)
		if got := plain && extensionAllowed(parts, []string{"exe"}, []string{"txt"}); got != ok {
			t.Errorf("%q: allowed %v, want %v", name, got, ok)
		}
	}
}

// FuzzNames: nothing that an extension is hidden in can panic, and a denied one appended plainly is always found.
func FuzzNames(f *testing.F) {
	for _, seed := range []string{"a", "a.txt", "..", "\xff", "ﬁ.ﬀ", "a.\u202e", "İ.İ", "℅", "ß.ẞ"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		parts, plain := extensions(name + ".exe")
		if plain && extensionAllowed(parts, []string{"exe"}, nil) {
			t.Fatalf("%q: %q", name, parts)
		}
	})
}
