// SPDX-License-Identifier: Apache-2.0

package forecast_test

import (
	"math/rand/v2"
	"testing"
	"testing/quick"
	"time"

	"github.com/weft-net/weft/internal/forecast"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// line returns n samples, step apart, that grow by perStep from used on.
func line(n int, step time.Duration, used, perStep float64) []forecast.Sample {
	var out []forecast.Sample
	for i := range n {
		out = append(out, forecast.Sample{At: start.Add(time.Duration(i) * step), Used: used + float64(i)*perStep})
	}
	return out
}

func near(a, b time.Duration) bool {
	return (a - b).Abs() <= max(time.Second, b/1000)
}

// Guards against a forecast that is wrong where there is no doubt: what grows
// evenly ends when the free part divided by the growth says, whatever the
// level, the distance of the samples and the unit.
func TestEvenGrowth(t *testing.T) {
	err := quick.Check(func(n, step, perStep uint8, used, free uint16) bool {
		count, s, grow := int(n%60)+2, time.Duration(step%120+1)*time.Second, float64(perStep)+1
		got, ok := forecast.Lasts(line(count, s, float64(used), grow), float64(free), 0)
		return ok && near(got, time.Duration(float64(free)/grow*float64(s)))
	}, nil)
	if err != nil {
		t.Error(err)
	}
}

// Guards against alarm about what does not grow, or of which too little is known.
func TestNothingToSay(t *testing.T) {
	for name, c := range map[string]struct {
		samples  []forecast.Sample
		free     float64
		shortest time.Duration
	}{
		"nothing known":         {nil, 10, 0},
		"one sample":            {line(1, time.Minute, 5, 1), 10, 0},
		"steady":                {line(30, time.Minute, 5, 0), 10, 0},
		"shrinking":             {line(30, time.Minute, 500, -1), 10, 0},
		"too short a time":      {line(5, time.Minute, 5, 1), 10, 5 * time.Minute},
		"samples of one moment": {line(5, 0, 5, 1), 10, 0},
		"beyond all plans":      {line(5, time.Hour, 5, 1e-3), 1e9, 0},
		"below where it was":    {append([]forecast.Sample{{At: start.Add(-time.Minute), Used: 5}}, line(5, time.Minute, 0, 1)...), 10, 0},
		"back where it was":     {append(line(10, time.Minute, 0, 1), forecast.Sample{At: start.Add(time.Hour)}), 10, 0},
	} {
		if d, ok := forecast.Lasts(c.samples, c.free, c.shortest); ok {
			t.Errorf("%s: lasts %s", name, d)
		}
	}
	if d, ok := forecast.Lasts(line(5, time.Minute, 5, 1), 10, 4*time.Minute); !ok || d != 10*time.Minute {
		t.Errorf("just long enough: %s, %t", d, ok)
	}
	if d, ok := forecast.Lasts(line(5, time.Minute, 5, 1), -3, 0); !ok || d != 0 {
		t.Errorf("over full already: %s, %t", d, ok)
	}
}

// Guards against a forecast that says more time for less room, or less for slower
// growth, on any series.
func TestOrder(t *testing.T) {
	err := quick.Check(func(seed uint64, free uint16) bool {
		r := rand.New(rand.NewPCG(seed, 1))
		s := line(20, time.Minute, 0, 1+r.Float64())
		for i := range s {
			s[i].Used += r.Float64()
		}
		small, ok := forecast.Lasts(s, float64(free), 0)
		large, okLarge := forecast.Lasts(s, float64(free)+1, 0)
		if !ok || !okLarge || large < small {
			return false
		}
		for i := range s {
			s[i].Used *= 2 // twice the growth
		}
		fast, ok := forecast.Lasts(s, float64(free), 0)
		return ok && near(2*fast, small)
	}, nil)
	if err != nil {
		t.Error(err)
	}
}

// Guards against one odd sample deciding: a dip at the beginning, which an
// extrapolation from the first sample takes for growth.
func TestOneOddSample(t *testing.T) {
	s := line(60, time.Minute, 100, 1)
	s[0].Used = 0
	got, ok := forecast.Lasts(s, 60, 0)
	if want := time.Hour; !ok || got < want*3/4 || got > want*5/4 {
		t.Errorf("one a minute, 60 free: %s, %t", got, ok)
	}
}

// Guards against a window that grows without end, that clings to growth which is
// over, or that is confused by a clock that was set back.
func TestWindow(t *testing.T) {
	w := forecast.Window{Span: 30 * time.Minute, Shortest: 5 * time.Minute}
	for _, s := range line(10, time.Minute, 0, 10) {
		w.Add(s)
	}
	if d, ok := w.Lasts(100); !ok || d != 10*time.Minute {
		t.Errorf("while it grows: %s, %t", d, ok)
	}
	for _, s := range line(31, time.Minute, 90, 0) {
		s.At = s.At.Add(10 * time.Minute)
		w.Add(s)
	}
	if d, ok := w.Lasts(100); ok {
		t.Errorf("half an hour after it ended: %s", d)
	}
	w.Add(forecast.Sample{At: start, Used: 1000})
	w.Add(forecast.Sample{At: start.Add(time.Minute), Used: 2000})
	if d, ok := w.Lasts(100); ok {
		t.Errorf("a minute after the clock was set back: %s", d)
	}
	for i := range 10 {
		w.Add(forecast.Sample{At: start.Add(time.Duration(i+2) * time.Minute), Used: 3000 + 1000*float64(i)})
	}
	if d, ok := w.Lasts(10000); !ok || d != 10*time.Minute {
		t.Errorf("ten minutes after: %s, %t", d, ok)
	}
	now := start.Add(time.Hour)
	if n := testing.AllocsPerRun(1000, func() {
		now = now.Add(30 * time.Second)
		w.Add(forecast.Sample{At: now, Used: 1})
	}); n > 0 {
		t.Errorf("a window that is full allocates %.0f times a sample", n)
	}
}
