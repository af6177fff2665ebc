// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Package figures turns the rounds of a benchmark into its figures: medians,
// ratios within a round, and a file that holds them.
package figures

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"
)

// Series is the rounds of each figure, by its name.
type Series map[string][]float64

// Add notes one round of a figure.
func (s Series) Add(name string, value float64) { s[name] = append(s[name], value) }

// Ratio adds a figure: that of one series to another's in the same round, a few
// seconds apart, so that a neighbour who is busy for longer hits both.
func (s Series) Ratio(name, of, to string) error {
	a, b := s[of], s[to]
	if len(a) == 0 || len(a) != len(b) {
		return fmt.Errorf("%s: %d rounds of %s, %d of %s", name, len(a), of, len(b), to)
	}
	for i := range a {
		s.Add(name, a[i]/b[i])
	}
	return nil
}

// Median of an even number of values is the mean of the two in the middle.
func Median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	n := len(v)
	return (v[(n-1)/2] + v[n/2]) / 2
}

// Round keeps four digits: there is no more in it.
func Round(v float64) float64 {
	if v == 0 {
		return 0
	}
	scale := math.Pow(10, 3-math.Floor(math.Log10(math.Abs(v))))
	return math.Round(v*scale) / scale
}

// File is what a benchmark writes.
type File struct {
	Figures map[string]float64    `json:"figures"` // medians of the rounds
	MinMax  map[string][2]float64 `json:"min_max"` // how far the rounds of each lay apart
	Rounds  int                   `json:"rounds"`
	Turns   int                   `json:"turns,omitempty"` // of each round
	CPUs    int                   `json:"cpus"`
	Kernel  string                `json:"kernel"`
}

// NewFile returns one without figures.
func NewFile(rounds, turns int) (*File, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, err
	}
	return &File{
		Figures: map[string]float64{}, MinMax: map[string][2]float64{}, Rounds: rounds, Turns: turns,
		CPUs: runtime.NumCPU(), Kernel: unix.ByteSliceToString(uts.Release[:]),
	}, nil
}

// Take adds all series. rounds says how many a figure must have.
func (f *File) Take(s Series, rounds func(name string) int) error {
	for name, v := range s {
		want := rounds(name)
		if len(v) != want || slices.ContainsFunc(v, func(x float64) bool { return math.IsNaN(x) || math.IsInf(x, 0) }) {
			return fmt.Errorf("%s: %d of %d rounds were measured: %v", name, len(v), want, v)
		}
		f.Figures[name] = Round(Median(v))
		f.MinMax[name] = [2]float64{Round(slices.Min(v)), Round(slices.Max(v))}
	}
	return nil
}

// TakeOver adds the figures of another benchmark's file: those that are named, or
// all.
func (f *File) TakeOver(path string, names ...string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var other File
	if err := json.Unmarshal(b, &other); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if len(other.Figures) == 0 {
		return fmt.Errorf("%s holds no figures", path)
	}
	if len(names) == 0 {
		maps.Copy(f.Figures, other.Figures)
	}
	for _, name := range names {
		v, ok := other.Figures[name]
		if !ok {
			return fmt.Errorf("%s holds no %s", path, name)
		}
		f.Figures[name] = v
		if m, ok := other.MinMax[name]; ok {
			f.MinMax[name] = m
		}
	}
	return nil
}

// Write writes the file, and prints what is in it.
func (f *File) Write(path string) error {
	b, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path, append(b, '\n'), 0o644); err != nil {
		return err
	}
	width := 0
	for name := range f.Figures {
		width = max(width, len(name))
	}
	for _, name := range slices.SortedFunc(maps.Keys(f.Figures), cmp.Compare[string]) {
		fmt.Printf("%-*s %10.4g", width, name, f.Figures[name])
		if s, ok := f.MinMax[name]; ok {
			fmt.Printf("   %.4g to %.4g", s[0], s[1])
		}
		fmt.Println()
	}
	return nil
}
