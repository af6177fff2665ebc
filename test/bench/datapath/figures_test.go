// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Guards against a measurement that failed and yet becomes a figure.
func TestWhatWasNotMeasuredIsNoFigure(t *testing.T) {
	for name, s := range map[string]series{
		"a round is missing":      {"native_rr_16_per_s": {1, 2}},
		"nothing divided by none": {"native_rr_16_per_s": {1, 2, math.NaN()}},
		"division by nothing":     {"native_rr_16_per_s": {1, 2, math.Inf(1)}},
	} {
		t.Run(name, func(t *testing.T) {
			o := options{out: filepath.Join(t.TempDir(), "figures.json"), rounds: 3, turns: 1}
			if err := s.write(o); err == nil || !strings.Contains(err.Error(), "native_rr_16_per_s") {
				t.Errorf("got %v, want an error that names the figure", err)
			}
			if _, err := os.Stat(o.out); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the file was written all the same: %v", err)
			}
		})
	}
	s := series{"native": {1, 2, 3}, "bare": {1, 2}}
	if err := s.ratio("native_vs_bare", "native", "bare"); err == nil {
		t.Error("a ratio of three rounds to two is no error")
	}
	if err := (series{}).ratio("native_vs_bare", "native", "bare"); err == nil {
		t.Error("a ratio of nothing is no error")
	}
}

// Guards against ratios of medians, which compare one variant's quiet moment with
// another's busy one.
func TestRatiosAreOfOneRound(t *testing.T) {
	s := series{"native": {90, 45, 10}, "bare": {100, 90, 10}}
	if err := s.ratio("native_vs_bare", "native", "bare"); err != nil {
		t.Fatal(err)
	}
	o := options{out: filepath.Join(t.TempDir(), "figures.json"), rounds: 3, turns: 1}
	if err := s.write(o); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(o.out)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Figures map[string]float64
		MinMax  map[string][2]float64 `json:"min_max"`
	}
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if f := got.Figures["native_vs_bare"]; f != 0.9 {
		t.Errorf("ratio is %v, want 0.9 and not that of the medians, 0.5", f)
	}
	if f, m := got.Figures["bare"], got.MinMax["bare"]; f != 90 || m != [2]float64{10, 100} {
		t.Errorf("median %v of %v, want 90 of 10 to 100", f, m)
	}
}
