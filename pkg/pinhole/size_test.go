package pinhole

import "testing"

func TestSize(t *testing.T) {
	for text, want := range map[string]Size{"0": 0, "700": 700, "10MB": 10_000_000, "1GiB": 1 << 30, "3 KiB": 3 << 10, "5B": 5, "2kB": 2000} {
		var s Size
		if err := s.UnmarshalText([]byte(text)); err != nil || s != want {
			t.Errorf("%q: %d, %v", text, s, err)
		}
		var back Size
		written, err := s.MarshalText()
		if err != nil || back.UnmarshalText(written) != nil || back != s {
			t.Errorf("%q written as %q, %v", text, written, err)
		}
	}
	for _, text := range []string{"", "GiB", "-1", "1.5GB", "1TB", "9999999999GiB", "1K", "i", "1 G iB"} {
		var s Size
		if err := s.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q taken as %d", text, s)
		}
	}
}
