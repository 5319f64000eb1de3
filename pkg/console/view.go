package console

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxRows is how many rows of a table a page shows at once; the rest is found by the filter.
const maxRows = 200

// view is what a page says, whatever the page: figures, then notices, tables, graphs.
type view struct {
	Title   string // instead of the page's own
	Notices []notice
	Figures []figure
	Facts   []figure
	Tables  []table
	Graphs  []graph
	Ladder  *ladder
	// Call is the ID of the live call that the page is about: there are actions for it.
	Call string
	// BanForm asks for a form by which somebody can be banned.
	BanForm bool
}

// notice is a sentence that wants attention; Class is good, warn or bad.
type notice struct{ Class, Text string }

// figure is one number with its name.
type figure struct{ Label, Value, Note, Link string }

type table struct {
	// ID is the table's name within the page: live updates find it by that.
	ID, Title, Note string
	Cols            []column
	Rows            []row
	// Empty is said where there are no rows.
	Empty string
	// Of is how many rows there are in all, Found how many the filter left.
	Of, Found int
}

type column struct {
	Name string
	Num  bool
}

// row is one line; Key is unique within the table and lasts as long as what it speaks of.
type row struct {
	Key   string
	Cells []cell
}

// cell is one value. Class is good, warn, bad (a state), num or mono.
type cell struct {
	Text, Class, Link, Title string
	Sub                      string // a second, quieter line
	Spark                    *graph
	Form                     *form  // a button instead of the text
	Col                      string // the column's name, for small screens
	Num                      bool
}

// cols makes columns of names; one that begins with # holds numbers.
func cols(names ...string) []column {
	out := make([]column, len(names))
	for i, n := range names {
		name, num := strings.CutPrefix(n, "#")
		out[i] = column{name, num}
	}
	return out
}

// CallPath is the page of the call that there are actions for.
func (v view) CallPath() string { return callPath(v.Call) }

// sign gives the buttons in the rows the key of a session.
func (v *view) sign(key string) {
	for _, t := range v.Tables {
		for _, r := range t.Rows {
			for _, c := range r.Cells {
				if c.Form != nil {
					c.Form.Key = key
				}
			}
		}
	}
}

// limit keeps the rows that contain what is searched, and no more than a page can hold; it gives each cell its column.
func (v *view) limit(query string) {
	for i := range v.Tables {
		t := &v.Tables[i]
		t.Of = len(t.Rows)
		if query != "" {
			t.Rows = slices.DeleteFunc(slices.Clone(t.Rows), func(r row) bool { return !r.contains(strings.ToLower(query)) })
		}
		t.Found = len(t.Rows)
		t.Rows = t.Rows[:min(len(t.Rows), maxRows)]
		for _, r := range t.Rows {
			for j := range r.Cells {
				r.Cells[j].Col, r.Cells[j].Num = t.Cols[j].Name, t.Cols[j].Num
			}
		}
	}
}

func (r row) contains(lower string) bool {
	return slices.ContainsFunc(r.Cells, func(c cell) bool {
		return strings.Contains(strings.ToLower(c.Text), lower) || strings.Contains(strings.ToLower(c.Sub), lower)
	})
}

func text(s string) cell { return cell{Text: orDash(s)} }

func mono(s string) cell { return cell{Text: orDash(s), Class: "mono"} }

func orDash(s string) string {
	if s == "" {
		return "–"
	}
	return s
}

// count prints 1234567 as 1,234,567.
func count[T int | int64 | uint64](n T) string {
	s := strconv.FormatInt(int64(n), 10)
	digits := strings.TrimPrefix(s, "-")
	sign := s[:len(s)-len(digits)]
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return sign + digits
}

func number[T int | int64 | uint64](n T) cell { return cell{Text: count(n)} }

// octets prints a number of octets by a unit of which there are fewer than 1024.
func octets(n uint64) cell {
	if n < 1024 {
		return cell{Text: fmt.Sprintf("%d B", n)}
	}
	v, unit := float64(n), -1
	for v >= 1024 && unit < 4 {
		v, unit = v/1024, unit+1
	}
	return cell{Text: fmt.Sprintf("%.1f %ciB", v, "KMGTP"[unit]), Title: count(n) + " octets"}
}

// seconds prints a time span by its two largest units.
func seconds(s float64) string {
	n := int64(s)
	switch {
	case n < 0:
		return "–"
	case n < 60:
		return fmt.Sprintf("%ds", n)
	case n < 3600:
		return fmt.Sprintf("%dm %02ds", n/60, n%60)
	case n < 86400:
		return fmt.Sprintf("%dh %02dm", n/3600, n/60%60)
	}
	return fmt.Sprintf("%dd %02dh", n/86400, n/3600%24)
}

// since prints how long ago something was, and when.
func since(t, now time.Time) cell {
	if t.IsZero() {
		return text("")
	}
	return cell{Text: seconds(now.Sub(t).Seconds()), Title: stamp(t)}
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

// milliseconds prints a time in seconds as milliseconds, nothing if it is not known.
func milliseconds(s float64) cell {
	if s == 0 {
		return text("")
	}
	return cell{Text: fmt.Sprintf("%.1f ms", s*1000)}
}

// lossOf is the share of packets that were lost, in percent.
func lossOf(s statsDoc) float64 {
	if s.Lost <= 0 {
		return 0
	}
	return 100 * float64(s.Lost) / (float64(s.Lost) + float64(s.Packets))
}

// lost prints lost packets and their share.
func lost(s statsDoc) cell {
	share := lossOf(s)
	c := cell{Text: count(s.Lost), Sub: fmt.Sprintf("%.1f %%", share)}
	switch {
	case share >= 5:
		c.Class = "bad"
	case share >= 1:
		c.Class = "warn"
	}
	return c
}

// mos prints a mean opinion score (ITU-T P.800: 1 to 5), "–" while it is not known; the limits are those of G.107's table B.1.
func mos(v float64) cell {
	switch {
	case v == 0:
		return text("")
	case v >= 4.03:
		return cell{Text: fmt.Sprintf("%.2f", v), Class: "good", Title: "satisfied"}
	case v >= 3.6:
		return cell{Text: fmt.Sprintf("%.2f", v), Title: "some are dissatisfied"}
	case v >= 3.1:
		return cell{Text: fmt.Sprintf("%.2f", v), Class: "warn", Title: "many are dissatisfied"}
	}
	return cell{Text: fmt.Sprintf("%.2f", v), Class: "bad", Title: "nearly all are dissatisfied"}
}

// state prints a word with a colour; the word says it without the colour, too.
func state(word string) cell {
	class := ""
	switch word {
	case "up", "ready", "served", "yes", "attached":
		class = "good"
	case "ringing", "draining", "starting", "waiting":
		class = "warn"
	case "down", "ended", "refused":
		class = "bad"
	}
	return cell{Text: word, Class: strings.TrimSpace("state " + class)}
}

// bare takes angle brackets and the scheme off a SIP URI.
func bare(uri string) string {
	if rest, ok := strings.CutPrefix(uri, "<"); ok && strings.HasSuffix(rest, ">") {
		uri = strings.TrimSuffix(rest, ">")
	}
	return strings.TrimPrefix(uri, "sip:")
}
