// SPDX-License-Identifier: Apache-2.0

// Package forecast says how long what is free will last: of a pool of addresses,
// a range of a node, a BPF map. It is pure; callers keep the samples.
package forecast

import (
	"slices"
	"time"
)

// Farthest is the longest time that is foretold: nobody plans beyond it.
const Farthest = 100 * 365 * 24 * time.Hour

// Sample is how much was in use at a time.
type Sample struct {
	At   time.Time
	Used float64
}

// Lasts returns how long free more will last at the growth of the samples, which
// are in the order of time: the slope of the straight line that fits them best
// (least squares), so that neither a burst nor a single low sample decides alone.
// It returns false where nothing can be said: the samples cover less than
// shortest, use did not grow, or the end is farther away than Farthest.
func Lasts(samples []Sample, free float64, shortest time.Duration) (time.Duration, bool) {
	n := len(samples)
	if n < 2 {
		return 0, false
	}
	first, last := samples[0], samples[n-1]
	if span := last.At.Sub(first.At); span <= 0 || span < shortest || last.Used <= first.Used {
		return 0, false
	}
	perSecond := slope(samples)
	if perSecond <= 0 {
		return 0, false
	}
	left := max(free, 0) / perSecond
	if left > Farthest.Seconds() {
		return 0, false
	}
	return time.Duration(left * float64(time.Second)), true
}

// slope is the growth a second of the line of least squares.
func slope(samples []Sample) float64 {
	last := samples[len(samples)-1]
	var meanX, meanY float64
	for _, s := range samples {
		meanX += s.At.Sub(last.At).Seconds()
		meanY += s.Used - last.Used // near zero, so that large counts lose nothing
	}
	meanX /= float64(len(samples))
	meanY /= float64(len(samples))
	var xy, xx float64
	for _, s := range samples {
		x := s.At.Sub(last.At).Seconds() - meanX
		xy += x * (s.Used - last.Used - meanY)
		xx += x * x
	}
	if xx == 0 {
		return 0
	}
	return xy / xx
}

// Window keeps the samples of one thing that are recent enough to tell its
// growth. The zero value forgets at once; it is not safe for concurrent use.
type Window struct {
	Span     time.Duration // how far back samples count
	Shortest time.Duration // that they must cover
	samples  []Sample
}

// Add takes a sample that is younger than those before. One that is not begins
// the window anew, as the clock was set back.
func (w *Window) Add(s Sample) {
	if n := len(w.samples); n > 0 && !s.At.After(w.samples[n-1].At) {
		w.samples = w.samples[:0]
	}
	w.samples = slices.DeleteFunc(w.samples, func(x Sample) bool { return s.At.Sub(x.At) > w.Span })
	w.samples = append(w.samples, s)
}

// Lasts is Lasts over the window.
func (w *Window) Lasts(free float64) (time.Duration, bool) {
	return Lasts(w.samples, free, w.Shortest)
}
