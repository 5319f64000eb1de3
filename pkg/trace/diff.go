package trace

import "strings"

// Line is a line of a difference. Op is "=" (in both), "-" (before only) or "+" (after only).
type Line struct {
	Op   string `json:"op"`
	Line string `json:"line"`
}

// maxDiff bounds the lines of each text that are compared one by one: the work grows with their product.
const maxDiff = 256

// Diff compares two texts line by line; ends of lines do not matter. What differs in texts of too many lines is
// shown as removed and added as a whole.
func Diff(before, after string) []Line {
	a, b := splitLines(before), splitLines(after)
	var out []Line
	for len(a) > 0 && len(b) > 0 && a[0] == b[0] {
		out = append(out, Line{"=", a[0]})
		a, b = a[1:], b[1:]
	}
	n := 0
	for n < len(a) && n < len(b) && a[len(a)-1-n] == b[len(b)-1-n] {
		n++
	}
	tail := a[len(a)-n:]
	out = appendDiff(out, a[:len(a)-n], b[:len(b)-n])
	for _, l := range tail {
		out = append(out, Line{"=", l})
	}
	return out
}

func splitLines(s string) []string {
	return strings.Split(strings.ToValidUTF8(strings.ReplaceAll(s, "\r\n", "\n"), "?"), "\n")
}

// appendDiff appends the difference by the longest common subsequence.
func appendDiff(out []Line, a, b []string) []Line {
	var common [][]int
	if len(a) <= maxDiff && len(b) <= maxDiff {
		common = subsequence(a, b)
	}
	for len(a) > 0 || len(b) > 0 {
		i, j := len(common)-len(a)-1, 0
		if common != nil {
			j = len(common[0]) - len(b) - 1
		}
		switch {
		case common != nil && len(a) > 0 && len(b) > 0 && a[0] == b[0]:
			out = append(out, Line{"=", a[0]})
			a, b = a[1:], b[1:]
		case len(a) > 0 && (common == nil || len(b) == 0 || common[i+1][j] >= common[i][j+1]):
			out = append(out, Line{"-", a[0]})
			a = a[1:]
		default:
			out = append(out, Line{"+", b[0]})
			b = b[1:]
		}
	}
	return out
}

// subsequence returns for each pair of tails the length of their longest common subsequence.
func subsequence(a, b []string) [][]int {
	n := make([][]int, len(a)+1)
	for i := range n {
		n[i] = make([]int, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i] == b[j] {
				n[i][j] = n[i+1][j+1] + 1
			} else {
				n[i][j] = max(n[i+1][j], n[i][j+1])
			}
		}
	}
	return n
}
