package console

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	dto "github.com/prometheus/client_model/go"
)

// drops lists every counter that has a reason: what was dropped, refused or denied, and why.
func (c *Console) drops(_ *http.Request, _ statusDoc) (view, error) {
	families, err := c.deps.Metrics.Gather()
	if err != nil {
		return view{}, err
	}
	t := table{ID: "drops", Cols: cols("What", "Reason", "#Count", "Metric"), Empty: "Nothing was dropped or refused."}
	for _, f := range families {
		if f.GetType() != dto.MetricType_COUNTER {
			continue
		}
		for _, m := range f.GetMetric() {
			if n := m.GetCounter().GetValue(); n > 0 && labelOf(m, "reason") != "" {
				t.Rows = append(t.Rows, dropRow(f, m, uint64(n)))
			}
		}
	}
	return view{Tables: []table{t}}, nil
}

func dropRow(f *dto.MetricFamily, m *dto.Metric, n uint64) row {
	var rest []string
	key := f.GetName()
	for _, l := range m.GetLabel() {
		key += " " + l.GetName() + "=" + l.GetValue()
		if l.GetName() != "reason" {
			rest = append(rest, l.GetName()+" "+l.GetValue())
		}
	}
	return row{key, []cell{
		{Text: strings.TrimSuffix(f.GetHelp(), "."), Sub: strings.Join(rest, ", ")}, text(strings.ReplaceAll(labelOf(m, "reason"), "_", " ")),
		number(n), mono(f.GetName()),
	}}
}

func labelOf(m *dto.Metric, name string) string {
	for _, l := range m.GetLabel() {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return ""
}

// happened says what an event tells of, in words as far as it is known.
func happened(kind string, data json.RawMessage) cell {
	switch kind {
	case "call_ended":
		var e struct {
			ID, From, To, Reason string
			Status               int
			Seconds              float64
		}
		if json.Unmarshal(data, &e) == nil {
			return cell{Text: fmt.Sprintf("%s → %s, %s", bare(e.From), bare(e.To), seconds(e.Seconds)), Sub: strings.TrimSpace(fmt.Sprintf("%d %s", e.Status, e.Reason))}
		}
	case "reload":
		var e struct {
			OK    bool
			Error string
		}
		if json.Unmarshal(data, &e) == nil && e.OK {
			return text("the configuration was taken over")
		}
		return cell{Text: "refused: " + e.Error, Class: "bad"}
	}
	var any map[string]any
	if json.Unmarshal(data, &any) != nil {
		return text("")
	}
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(any)) {
		parts = append(parts, fmt.Sprintf("%s %v", strings.ReplaceAll(k, "_", " "), any[k]))
	}
	return text(short(strings.Join(parts, ", "), 200))
}
