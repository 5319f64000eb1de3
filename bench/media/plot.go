package main

import (
	"fmt"
	"html"
	"os"
	"strings"
)

// plot draws, for each case, a bar of CPU per packet for each mode as an SVG file; the longest has full width.
func (rs *results) plot(file string, o options) error {
	const left, full, step = 190, 420, 20
	var b strings.Builder
	y := 24
	for _, k := range o.cases() {
		fmt.Fprintf(&b, `<text x="10" y="%d" font-weight="bold">%s</text>`+"\n", y, html.EscapeString(k.String()))
		most := 1e-9
		for _, m := range o.modes {
			most = max(most, median(rs.of[m.name][k], costMetric().value))
		}
		for _, m := range o.modes {
			r := rs.of[m.name][k]
			if len(r) == 0 {
				continue
			}
			y += step
			cost, color := median(r, costMetric().value), "#9dc3e6"
			if m.ours {
				color = "#1f4e79"
			}
			width := int(cost / most * full)
			fmt.Fprintf(&b, `<text x="20" y="%d">%s</text><rect x="%d" y="%d" width="%d" height="15" fill="%s"/>`+
				`<text x="%d" y="%d">%.0f ns, %.0f kpps</text>`+"\n", y, html.EscapeString(m.text), left, y-12, width, color,
				left+width+6, y, cost, median(r, rateMetric().value)/1000)
		}
		y += step + 12
	}
	text := fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n%s</svg>\n",
		left+full+150, y, b.String())
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return fmt.Errorf("plot: %w", err)
	}
	return nil
}
