// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// series is the rounds of each figure, by its name.
type series map[string][]float64

func (s series) add(name string, value float64) { s[name] = append(s[name], value) }

// ratio adds a figure: that of one series to another's in the same round, a few
// seconds apart, so that a neighbour who is busy for longer hits both.
func (s series) ratio(name, of, to string) error {
	a, b := s[of], s[to]
	if len(a) == 0 || len(a) != len(b) {
		return fmt.Errorf("%s: %d rounds of %s, %d of %s", name, len(a), of, len(b), to)
	}
	for i := range a {
		s.add(name, a[i]/b[i])
	}
	return nil
}

// ratios are the figures that there are aims for. Streams are one connection, all
// else sixteen.
func (s series) ratios() error {
	var errs []error
	for _, r := range [][2]string{{"native", "bare"}, {"bare", "ptp"}, {"native", "ptp"}, {"vxlan", "kernel_vxlan"}} {
		name := r[0] + "_vs_" + r[1]
		errs = append(errs,
			s.ratio(name+"_stream", r[0]+"_stream_1_gbps", r[1]+"_stream_1_gbps"),
			s.ratio(name+"_rr", r[0]+"_rr_16_per_s", r[1]+"_rr_16_per_s"),
			s.ratio(name+"_crr", r[0]+"_crr_16_per_s", r[1]+"_crr_16_per_s"),
			s.ratio(name+"_udp", r[0]+"_udp_64b_per_s", r[1]+"_udp_64b_per_s"),
		)
	}
	for i, ns := range s["native_programs_ns"] {
		s.add("above_bare_ns", ns-s["bare_programs_ns"][i])
	}
	return errors.Join(append(errs, s.ratio("bigtcp_vs_host_stream", "bigtcp_stream_1_gbps", "host_stream_1_gbps"))...)
}

// median of an even number of values is the mean of the two in the middle.
func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	n := len(v)
	return (v[(n-1)/2] + v[n/2]) / 2
}

// round keeps four digits: there is no more in it.
func round(v float64) float64 {
	if v == 0 {
		return 0
	}
	scale := math.Pow(10, 3-math.Floor(math.Log10(math.Abs(v))))
	return math.Round(v*scale) / scale
}

// takeOver adds the figures of another benchmark.
func (o options) takeOver(figures map[string]float64) error {
	if o.with == "" {
		return nil
	}
	b, err := os.ReadFile(o.with)
	if err != nil {
		return err
	}
	var other struct{ Figures map[string]float64 }
	if err := json.Unmarshal(b, &other); err != nil {
		return fmt.Errorf("%s: %w", o.with, err)
	}
	if len(other.Figures) == 0 {
		return fmt.Errorf("%s holds no figures", o.with)
	}
	maps.Copy(figures, other.Figures)
	return nil
}

// write writes the median of each figure, and beside it how far its rounds lay apart.
func (s series) write(o options) error {
	figures, spread := map[string]float64{}, map[string][2]float64{}
	for name, v := range s {
		want := o.rounds * o.turns
		if strings.Contains(name, "_stream") {
			want = o.rounds
		}
		if len(v) != want || slices.ContainsFunc(v, func(x float64) bool { return math.IsNaN(x) || math.IsInf(x, 0) }) {
			return fmt.Errorf("%s: %d of %d rounds were measured: %v", name, len(v), want, v)
		}
		figures[name] = round(median(v))
		spread[name] = [2]float64{round(slices.Min(v)), round(slices.Max(v))}
	}
	if err := o.takeOver(figures); err != nil {
		return err
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return err
	}
	b, err := json.MarshalIndent(map[string]any{
		"figures": figures, "min_max": spread, "rounds": o.rounds, "turns": o.turns, "cpus": runtime.NumCPU(), "kernel": unix.ByteSliceToString(uts.Release[:]),
	}, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(o.out), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(o.out, append(b, '\n'), 0o644); err != nil {
		return err
	}
	width := 0
	for name := range figures {
		width = max(width, len(name))
	}
	for _, name := range slices.SortedFunc(maps.Keys(figures), cmp.Compare[string]) {
		fmt.Printf("%-*s %10.4g", width, name, figures[name])
		if s, ok := spread[name]; ok {
			fmt.Printf("   %.4g to %.4g", s[0], s[1])
		}
		fmt.Println()
	}
	return nil
}
