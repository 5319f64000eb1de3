package report

import (
	"fmt"
	"html"
	"os"
	"strings"
)

// Plot draws two bars for each row, the longer one of full width, as an SVG file.
func Plot(file string, rows []Row) error {
	const left, full, step = 400, 360, 46
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n",
		left+full+110, step*len(rows)+40)
	fmt.Fprintln(&b, `<text x="10" y="20" font-weight="bold">edged (dark) and its peers (light)</text>`)
	for i, r := range rows {
		y := 36 + i*step
		fmt.Fprintf(&b, `<text x="10" y="%d">%s and %s</text><text x="10" y="%d" fill="#666">%s, %s is better</text>`+"\n",
			y+13, html.EscapeString(r.Name), html.EscapeString(r.Peer), y+28, html.EscapeString(r.Metric), r.Better)
		most := max(r.Edged, r.Value, 1e-9)
		for j, v := range []float64{r.Edged, r.Value} {
			width := int(v / most * full)
			fmt.Fprintf(&b, `<rect x="%d" y="%d" width="%d" height="16" fill="%s"/><text x="%d" y="%d">%.4g</text>`+"\n",
				left, y+j*18, width, []string{"#1f4e79", "#9dc3e6"}[j], left+width+6, y+13+j*18, v)
		}
	}
	b.WriteString("</svg>\n")
	if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
		return fmt.Errorf("plot: %w", err)
	}
	return nil
}
