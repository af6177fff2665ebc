// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"errors"
	"strings"

	"github.com/weft-net/weft/test/bench/figures"
)

// ratios are the figures that there are aims for. Streams are one connection, all
// else sixteen.
func ratios(s figures.Series) error {
	var errs []error
	for _, r := range [][2]string{{"native", "bare"}, {"bare", "ptp"}, {"native", "ptp"}, {"vxlan", "kernel_vxlan"}} {
		name := r[0] + "_vs_" + r[1]
		errs = append(errs,
			s.Ratio(name+"_stream", r[0]+"_stream_1_gbps", r[1]+"_stream_1_gbps"),
			s.Ratio(name+"_rr", r[0]+"_rr_16_per_s", r[1]+"_rr_16_per_s"),
			s.Ratio(name+"_crr", r[0]+"_crr_16_per_s", r[1]+"_crr_16_per_s"),
			s.Ratio(name+"_udp", r[0]+"_udp_64b_per_s", r[1]+"_udp_64b_per_s"),
		)
	}
	aboveBare(s)
	return errors.Join(append(errs, s.Ratio("bigtcp_vs_host_stream", "bigtcp_stream_1_gbps", "host_stream_1_gbps"))...)
}

func aboveBare(s figures.Series) {
	for i, ns := range s["native_programs_ns"] {
		s.Add("above_bare_ns", ns-s["bare_programs_ns"][i])
	}
}

// write writes the median of each figure, and beside it how far its rounds lay apart.
func (o options) write(s figures.Series) error {
	f, err := figures.NewFile(o.rounds, o.turns)
	if err != nil {
		return err
	}
	err = f.Take(s, func(name string) int {
		if strings.Contains(name, "_stream") {
			return o.rounds
		}
		return o.rounds * o.turns
	})
	if err == nil && o.with != "" {
		err = f.TakeOver(o.with)
	}
	if err != nil {
		return err
	}
	return f.Write(o.out)
}
