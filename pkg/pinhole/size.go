package pinhole

import (
	"fmt"
	"strconv"
	"strings"
)

// Size is a number of octets, written "700", "10MB" or "1GiB".
type Size int64

// UnmarshalText reads a number with or without a unit: kB, MB, GB (powers of 1000), KiB, MiB, GiB (of 1024).
func (s *Size) UnmarshalText(b []byte) error {
	text := strings.TrimSpace(string(b))
	number := strings.TrimRight(text, "kKMGiB ")
	unit, ok := map[string]int64{
		"": 1, "B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30,
	}[strings.TrimSpace(text[len(number):])]
	n, err := strconv.ParseInt(number, 10, 64)
	if !ok || err != nil || n < 0 || n > (1<<60)/unit {
		return fmt.Errorf("%q is not a size such as 500MB or 1GiB", b)
	}
	*s = Size(n * unit)
	return nil
}

// MarshalText writes the number with the largest binary unit that divides it.
func (s Size) MarshalText() ([]byte, error) {
	for _, u := range []struct {
		n    Size
		name string
	}{{1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if s != 0 && s%u.n == 0 {
			return fmt.Appendf(nil, "%d%s", s/u.n, u.name), nil
		}
	}
	return strconv.AppendInt(nil, int64(s), 10), nil
}
