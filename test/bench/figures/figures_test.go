// SPDX-License-Identifier: Apache-2.0

//go:build linux

package figures_test

import (
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weft-net/weft/test/bench/figures"
)

func rounds(string) int { return 3 }

func file(t *testing.T) *figures.File {
	t.Helper()
	f, err := figures.NewFile(3, 1)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// Guards against a measurement that failed and yet becomes a figure.
func TestWhatWasNotMeasuredIsNoFigure(t *testing.T) {
	for name, s := range map[string]figures.Series{
		"a round is missing":      {"native_rr_16_per_s": {1, 2}},
		"nothing divided by none": {"native_rr_16_per_s": {1, 2, math.NaN()}},
		"division by nothing":     {"native_rr_16_per_s": {1, 2, math.Inf(1)}},
	} {
		t.Run(name, func(t *testing.T) {
			f := file(t)
			if err := f.Take(s, rounds); err == nil || !strings.Contains(err.Error(), "native_rr_16_per_s") {
				t.Errorf("got %v, want an error that names the figure", err)
			}
			if len(f.Figures) > 0 {
				t.Errorf("figures all the same: %v", f.Figures)
			}
		})
	}
	s := figures.Series{"native": {1, 2, 3}, "bare": {1, 2}}
	if err := s.Ratio("native_vs_bare", "native", "bare"); err == nil {
		t.Error("a ratio of three rounds to two is no error")
	}
	if err := (figures.Series{}).Ratio("native_vs_bare", "native", "bare"); err == nil {
		t.Error("a ratio of nothing is no error")
	}
}

// Guards against ratios of medians, which compare one variant's quiet moment with
// another's busy one.
func TestRatiosAreOfOneRound(t *testing.T) {
	s := figures.Series{"native": {90, 45, 10}, "bare": {100, 90, 10}}
	if err := s.Ratio("native_vs_bare", "native", "bare"); err != nil {
		t.Fatal(err)
	}
	f := file(t)
	path := filepath.Join(t.TempDir(), "figures.json")
	if err := errors.Join(f.Take(s, rounds), f.Write(path)); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
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

// Guards against a figure of another benchmark that is missed, or taken for 0.
func TestTakenOverFiguresMustBeThere(t *testing.T) {
	from := file(t)
	path := filepath.Join(t.TempDir(), "other.json")
	if err := errors.Join(from.Take(figures.Series{"above_bare_ns": {400, 410, 420}, "other": {1, 2, 3}}, rounds), from.Write(path)); err != nil {
		t.Fatal(err)
	}
	to := file(t)
	if err := to.TakeOver(path, "above_bare_ns"); err != nil || len(to.Figures) != 1 || to.Figures["above_bare_ns"] != 410 {
		t.Errorf("got %v, %v, want above_bare_ns alone, 410", to.Figures, err)
	}
	if err := to.TakeOver(path, "missing"); err == nil || !strings.Contains(err.Error(), "missing") {
		t.Errorf("got %v, want an error that names the figure", err)
	}
}
