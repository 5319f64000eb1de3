package console

import (
	"fmt"
	"strings"
	"sync"
	"time"
)

const (
	samplePeriod = 2 * time.Second
	// maxSamples of a stream are ten minutes, or more where samples are rarer.
	maxSamples = 300
	// maxStreams bounds the memory of graphs to some 6 MiB; of pinholes above it there are none.
	maxStreams = 512
)

// sample is what an end had received at a time.
type sample struct {
	at          time.Time
	packets     uint64
	lost        int64
	jitter, mos float32
}

// history keeps samples of the ends of pinholes as long as these are open.
type history struct {
	mu    sync.Mutex
	holes map[uint64]*[2][]sample
}

func newHistory() *history { return &history{holes: map[uint64]*[2][]sample{}} }

// add takes a sample of all pinholes; those that are not among them are forgotten.
func (h *history) add(now time.Time, holes []pinholeDoc) {
	h.mu.Lock()
	defer h.mu.Unlock()
	next := make(map[uint64]*[2][]sample, min(len(holes), maxStreams))
	for _, p := range holes {
		if len(next) == maxStreams {
			break
		}
		kept := h.holes[p.ID]
		if kept == nil {
			kept = &[2][]sample{}
		}
		for i, e := range p.Ends {
			s := sample{now, e.Stats.Packets, e.Stats.Lost, float32(e.Stats.Jitter), float32(e.Stats.MOS)}
			if len(kept[i]) == maxSamples {
				copy(kept[i], kept[i][1:])
				kept[i] = kept[i][:maxSamples-1]
			}
			kept[i] = append(kept[i], s)
		}
		next[p.ID] = kept
	}
	h.holes = next
}

// graph is one line over time, drawn into a box of 300 by 60 with y downward.
type graph struct {
	ID, Name, Unit, From string
	Points               string // as the attribute points of a polyline; empty: too few samples
	Area                 string // the same, closed at the foot
	Last, Most           string
	Span                 string // of time
}

const (
	graphWide = 300.0
	graphHigh = 60.0
)

// graphs returns packets, loss, jitter and MOS of an end, in this order.
func (h *history) graphs(id uint64, end int) [4]graph {
	h.mu.Lock()
	defer h.mu.Unlock()
	var samples []sample
	if kept := h.holes[id]; kept != nil {
		samples = kept[end]
	}
	packets := plot("Packets", "/s", "%.0f", 0, samples, func(a, b sample) float64 { return rate(float64(b.packets)-float64(a.packets), a, b) })
	loss := plot("Loss", "%", "%.1f", 1, samples, func(a, b sample) float64 {
		lost, got := max(0, float64(b.lost-a.lost)), max(0, float64(b.packets)-float64(a.packets))
		if lost == 0 {
			return 0
		}
		return 100 * lost / (lost + got)
	})
	jitter := plot("Jitter", "ms", "%.1f", 1, samples, func(_, b sample) float64 { return 1000 * float64(b.jitter) })
	score := plot("MOS", "", "%.2f", 5, samples, func(_, b sample) float64 { return float64(b.mos) })
	return [4]graph{packets, loss, jitter, score}
}

func rate(n float64, a, b sample) float64 {
	if d := b.at.Sub(a.at).Seconds(); d > 0 && n > 0 {
		return n / d
	}
	return 0
}

// plot draws what value says of each pair of neighbours; the top is the largest one, at least top.
func plot(name, unit, format string, top float64, samples []sample, value func(a, b sample) float64) graph {
	g := graph{Name: name, Unit: unit, Last: "–"}
	if len(samples) < 2 {
		return g
	}
	values := make([]float64, len(samples)-1)
	for i := range values {
		values[i] = value(samples[i], samples[i+1])
		top = max(top, values[i])
	}
	if top == 0 {
		top = 1
	}
	first, last := samples[1].at, samples[len(samples)-1].at
	whole := max(last.Sub(first), time.Second).Seconds()
	var b strings.Builder
	for i, v := range values {
		x := graphWide * samples[i+1].at.Sub(first).Seconds() / whole
		fmt.Fprintf(&b, "%.1f,%.1f ", x, graphHigh-2-(graphHigh-4)*v/top)
	}
	g.Points = strings.TrimSpace(b.String())
	g.Area = fmt.Sprintf("0,%.0f %s %.1f,%.0f", graphHigh, g.Points, graphWide*last.Sub(first).Seconds()/whole, graphHigh)
	g.Last, g.Most = fmt.Sprintf(format, values[len(values)-1]), fmt.Sprintf(format, top)
	g.Span = seconds(last.Sub(first).Seconds())
	return g
}
