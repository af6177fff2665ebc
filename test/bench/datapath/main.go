// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Command datapath measures what the datapath costs: one pod on each of two nodes
// that a wire joins, all of them network namespaces of this machine, and a load
// between the pods. In each round every variant is measured a second or less after
// the last one, so that a busy neighbour hits all of them; figures are medians of
// the rounds, and ratios medians of each round's ratio.
//
// Variants:
//
//	host          from node to node, without pods
//	bare          a forwarder that does nothing but forward: package bare
//	native        Weft, native routing
//	ptp           Debian's containernetworking-plugins, the kernel routes
//	kernel_vxlan  the kernel routes into a VXLAN device with a static FDB
//	vxlan         Weft, overlay
//	bigtcp        Weft, native routing, with BIG TCP
//
// Figures of each, over 1 and 16 connections:
//
//	*_stream_*_gbps            iperf3, 10^9 bits a second
//	*_stream_*_cpu_us_per_mib  processor time, sender's and receiver's
//	*_rr_*_per_s               a byte there and a byte back, over a connection that stays
//	*_crr_*_per_s              the same with a new connection each time
//	*_cpu_us                   processor time of one such transaction, or datagram
//	*_udp_64b_per_s            datagrams with 64 bytes of payload that arrive, one sender
//
// And of the programs, by the kernel's own account (bpf_stats_enabled), for a
// packet of an established flow under 16 connections of request and response:
//
//	*_{from_pod,...}_ns        mean run time of a program, account included;
//	                           bare_to_net does nothing: that is the account's own
//	*_programs_ns              of all that a packet meets on its way, together
//	*_crr_ns                   the same under connect, request and response
//	above_bare_ns              native's less bare's, three programs each
//
// Ratios (a_vs_b_*) are of streams over 1 connection, of all else over 16.
//
// What restarts of the agent cost, agent_restart_ms_* and restart_*, is measured by
// test/bench/cni -restarts, and taken over from there.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/weft-net/weft/test/bench/figures"
	"github.com/weft-net/weft/test/bench/load"
	"github.com/weft-net/weft/test/bench/sandbox"
)

const childEnv = "WEFT_BENCH_DATAPATH" // set inside the namespaces

type options struct {
	out    string
	rounds int
	turns  int
	slice  time.Duration
	watch  string
	with   string

	services int
}

func main() {
	var o options
	flag.StringVar(&o.out, "out", "build/bench/datapath.json", "file to write the figures to")
	flag.IntVar(&o.rounds, "rounds", 6, "times that each variant carries streams, a second each")
	flag.IntVar(&o.turns, "turns", 5, "times in each round that each variant carries any other load")
	flag.DurationVar(&o.slice, "slice", 100*time.Millisecond, "duration of any other load")
	flag.StringVar(&o.with, "with", "", "file with figures of another benchmark, to be written beside these")
	flag.IntVar(&o.services, "services", 0, "measure above_bare_ns alone, on nodes that have so many Services of 10 endpoints")
	flag.StringVar(&o.watch, "watch", "", "VARIANT and stream, rr or crr: measure nothing, but keep up this load, the latter two over 16 connections, for 10 s, to be looked at with perf")
	flag.Parse()
	var err error
	if os.Getenv(childEnv) == "" {
		// The runtime's signals would end system calls that wait with a time limit.
		if err = os.Setenv("GODEBUG", "asyncpreemptoff=1"); err == nil {
			err = sandbox.Run(childEnv, 0)
		}
	} else {
		err = run(o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench datapath:", err)
		os.Exit(1)
	}
}

func run(o options) error {
	if runtime.NumCPU() < 2 {
		return fmt.Errorf("needs two cores, one for each end of the load")
	}
	// Threads that wait in the kernel must find their place when they come back,
	// and nothing may stop them all.
	runtime.GOMAXPROCS(4 * responders)
	debug.SetGCPercent(-1)
	if err := sandbox.Mount(); err != nil {
		return err
	}
	variants, err := newVariants(o.services)
	if err != nil {
		return err
	}
	b, err := newBench(o, variants)
	if err != nil {
		return err
	}
	if o.watch != "" {
		return b.underLoad(o.watch, 10*time.Second)
	}
	for i := range o.rounds {
		fmt.Fprintf(os.Stderr, "round %d of %d\n", i+1, o.rounds)
		if err := b.round(); err != nil {
			return err
		}
	}
	for _, v := range variants {
		if v.check == nil {
			continue
		}
		if err := v.check(); err != nil {
			return fmt.Errorf("%s: %w", v.name, err)
		}
	}
	if o.services > 0 {
		aboveBare(b.series)
		return o.write(b.series)
	}
	if err := ratios(b.series); err != nil {
		return err
	}
	return o.write(b.series)
}

// bench is what is measured by turns.
type bench struct {
	options
	variants []*variant
	streams  map[*variant]*streams
	cpu      load.Processors
	series   figures.Series
}

func newBench(o options, variants []*variant) (*bench, error) {
	b := &bench{options: o, variants: variants, streams: map[*variant]*streams{}, series: figures.Series{}}
	for _, v := range variants {
		err := errors.Join(setTCP(v.client), setTCP(v.server), respond(v))
		if err == nil {
			b.streams[v], err = newStreams(v)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", v.name, err)
		}
	}
	var err error
	b.cpu, err = load.NewProcessors()
	return b, err
}

// underLoad keeps one variant busy.
func (b *bench) underLoad(what string, d time.Duration) error {
	name, traffic, _ := strings.Cut(what, " ")
	kind, ok := map[string]func(*variant) client{"rr": requestResponse, "crr": connectRequestResponse}[traffic]
	i := slices.IndexFunc(b.variants, func(v *variant) bool { return v.name == name })
	if i >= 0 && traffic == "stream" {
		return b.streaming(b.variants[i], d)
	}
	if !ok || i < 0 {
		return fmt.Errorf("-watch %q: want a variant and stream, rr or crr", what)
	}
	r, err := transactions(b.variants[i], 16, d, b.cpu, kind)
	fmt.Printf("%s: %.0f a second, %.1f us of processor time for each\n", what, r.rate, r.cpu*1e6)
	return err
}

// streaming keeps one variant busy with a stream.
func (b *bench) streaming(v *variant, d time.Duration) error {
	for start := time.Now(); time.Since(start) < d; {
		r, err := b.streams[v].measure(1)
		if err != nil {
			return err
		}
		fmt.Printf("%s: %.1f Gbit/s, %.0f us of processor time for a MiB\n", v.name, r.rate/1e9, r.cpu*1e6*8*(1<<20))
	}
	return nil
}

// setTCP makes both ends behave alike everywhere. The client closes first: its
// ports are used again after a second. BBR, the default of some machines, paces by
// what it took the bandwidth for, which says little of the path. Reno is allowed
// everywhere.
func setTCP(s sandbox.Space) error {
	return s.In(func() error {
		for name, value := range map[string]string{
			"tcp_tw_reuse": "1", "ip_local_port_range": "1024 65535", "tcp_congestion_control": "reno",
		} {
			if err := os.WriteFile("/proc/sys/net/ipv4/"+name, []byte(value), 0o644); err != nil {
				return err
			}
		}
		return nil
	})
}

// round measures streams once and all else some times: one kind of load after the
// other, each with all variants by turns.
func (b *bench) round() error {
	if b.services > 0 {
		for range b.turns {
			if err := b.each("programs_ns", b.programs("_ns", requestResponse)); err != nil {
				return err
			}
		}
		return nil
	}
	for _, conns := range []int{1, 16} {
		if err := b.each(fmt.Sprintf("stream_%d", conns), b.stream(conns)); err != nil {
			return err
		}
	}
	for range b.turns {
		if err := b.turn(); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) turn() error {
	for _, conns := range []int{1, 16} {
		if err := b.each(fmt.Sprintf("rr_%d", conns), b.transactions(conns, requestResponse)); err != nil {
			return err
		}
		if err := b.each(fmt.Sprintf("crr_%d", conns), b.transactions(conns, connectRequestResponse)); err != nil {
			return err
		}
	}
	err := b.each("udp_64b", func(v *variant, name string) error {
		r, err := datagrams(v, b.slice, b.cpu)
		b.note(name, r)
		return err
	})
	if err != nil {
		return err
	}
	return errors.Join(
		b.each("programs_ns", b.programs("_ns", requestResponse)),
		b.each("programs_crr_ns", b.programs("_crr_ns", connectRequestResponse)),
	)
}

// each calls f for all variants by turns.
func (b *bench) each(name string, f func(v *variant, name string) error) error {
	for _, v := range b.variants {
		if err := f(v, v.name+"_"+name); err != nil {
			return fmt.Errorf("%s %s: %w", v.name, name, err)
		}
	}
	return nil
}

func (b *bench) note(name string, r result) {
	b.series.Add(name+"_per_s", r.rate)
	b.series.Add(name+"_cpu_us", r.cpu*1e6)
}

func (b *bench) transactions(conns int, kind func(*variant) client) func(*variant, string) error {
	return func(v *variant, name string) error {
		r, err := transactions(v, conns, b.slice, b.cpu, kind)
		b.note(name, r)
		return err
	}
}

func (b *bench) stream(conns int) func(*variant, string) error {
	return func(v *variant, name string) error {
		r, err := b.streams[v].measure(conns)
		b.series.Add(name+"_gbps", r.rate/1e9)
		b.series.Add(name+"_cpu_us_per_mib", r.cpu*1e6*8*(1<<20))
		return err
	}
}

// programs measures the run time of programs under one load.
func (b *bench) programs(suffix string, kind func(*variant) client) func(*variant, string) error {
	return func(v *variant, name string) error {
		if len(v.programs) == 0 {
			return nil
		}
		times, err := runTimes(v, func() error {
			_, err := transactions(v, 16, b.slice, b.cpu, kind)
			return err
		})
		sum := 0.0
		for program, t := range times {
			b.series.Add(v.name+"_"+program+suffix, t)
			sum += t
		}
		b.series.Add(name, sum)
		return err
	}
}
