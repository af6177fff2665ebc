// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/weft-net/weft/test/bench/figures"
	"github.com/weft-net/weft/test/bench/load"
	"github.com/weft-net/weft/test/bench/sandbox"
)

// sides are who may serve a node, as figures name them.
func sides() []string { return []string{"weft", "kubeproxy_iptables", "kubeproxy_nft"} }

// bench is one run.
type bench struct {
	options
	cgroups string
	objs    *objects
	outside *podsProcess // of clients outside of all nodes
	nodes   []*node
	once    map[string]float64 // figures that are measured once
	series  figures.Series
}

func measure(o options) error {
	// The first process of its namespace: all that it started ends with it.
	time.AfterFunc(o.limit, func() {
		fmt.Fprintln(os.Stderr, "bench services: not done within", o.limit)
		os.Exit(1)
	})
	if err := errors.Join(sandbox.Mount(), os.MkdirAll(apiDir, 0o755)); err != nil {
		return err
	}
	if err := errors.Join(sandbox.LoopbackUp()); err != nil {
		return err
	}
	b := &bench{options: o, once: map[string]float64{}, series: figures.Series{}}
	var err error
	if b.cgroups, err = cgroupRoot(); err != nil {
		return err
	}
	if b.outside, err = newPods(""); err != nil {
		return err
	}
	if err := b.build(); err != nil {
		return err
	}
	if o.watch != "" {
		return b.keepUp(o.watch, 10*time.Second)
	}
	for i := range o.turns {
		fmt.Fprintf(os.Stderr, "turn %d of %d\n", i+1, o.turns)
		if err := b.turn(i); err != nil {
			return err
		}
	}
	if err := b.strays(); err != nil {
		return err
	}
	return b.write()
}

// build makes all nodes ready.
func (b *bench) build() error {
	api, err := startAPI()
	if err != nil {
		return err
	}
	if err := api.define(b.crds); err != nil {
		return err
	}
	if b.objs, err = newObjects(api); err != nil {
		return err
	}
	for i, services := range b.services {
		if i == len(b.services)-1 {
			if err := b.objs.last(); err != nil {
				return err
			}
		}
		began := time.Now()
		if err := b.objs.fill(services); err != nil {
			return err
		}
		filled := time.Since(began)
		told, err := b.objs.list()
		if err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "%d Services at the API server after %s, told in %s\n", services, filled.Round(time.Millisecond), told.Round(time.Millisecond))
		b.once["list_"+short(services)+"_s"] = told.Seconds()
		for _, side := range sides() {
			if name := side + "_" + short(services); b.watch != "" && !strings.HasPrefix(b.watch, name+" ") {
				continue
			}
			if err := b.bringUp(side, services, i == len(b.services)-1); err != nil {
				return fmt.Errorf("%s with %d Services: %w", side, services, err)
			}
		}
	}
	return api.stop()
}

// short is a number as figures' names have it: 10k.
func short(services int) string {
	if services >= 1000 && services%1000 == 0 {
		return fmt.Sprintf("%dk", services/1000)
	}
	return strconv.Itoa(services)
}

func (b *bench) most() string { return short(b.services[len(b.services)-1]) }

func (b *bench) bringUp(side string, services int, last bool) error {
	n, err := newNode(side+"_"+short(services), services, b.cgroups)
	if err != nil {
		return err
	}
	b.nodes = append(b.nodes, n)
	var took time.Duration
	name := side + "_"
	switch {
	case side == "weft" && last:
		name = ""
		took, err = woven(n, b.objs, b.options, b.whileItRuns)
	case side == "weft":
		name = ""
		took, err = woven(n, b.objs, b.options, nil)
	default:
		var measure func(*kubeProxy) error
		if last {
			measure = func(p *kubeProxy) error { return b.whileProxyRuns(side, p) }
		}
		took, err = proxied(n, b.objs, map[string]string{"kubeproxy_iptables": "iptables", "kubeproxy_nft": "nftables"}[side], measure)
	}
	if err != nil {
		return err
	}
	b.once[name+"program_"+short(services)+"_s"] = took.Seconds()
	fmt.Fprintf(os.Stderr, "%s: programmed after %s\n", n.name, took.Round(time.Millisecond))
	return nil
}

// way is how a node's Service is asked.
type way struct {
	kind string
	by   *podsProcess
	from sandbox.Space
	to   netip.AddrPort
}

func (b *bench) ways(n *node) []way {
	return []way{
		{"clusterip", n.pods, n.client, b.objs.target},
		{"nodeport", b.outside, n.outside, netip.AddrPortFrom(netip.MustParseAddr(nodeAddr), targetNodePort)},
	}
}

// atATime is how many connections there are at a time where their rate counts.
const atATime = 16

// turn gives each node each load once. Who begins changes from turn to turn.
func (b *bench) turn(i int) error {
	for _, conns := range []int{atATime, 1} {
		for w := range b.ways(b.nodes[0]) {
			for j := range b.nodes {
				n := b.nodes[(i+j)%len(b.nodes)]
				if err := b.load(n, b.ways(n)[w], conns); err != nil {
					return fmt.Errorf("%s %s: %w", n.name, b.ways(n)[w].kind, err)
				}
			}
		}
	}
	return nil
}

func (b *bench) load(n *node, w way, conns int) error {
	cpu, err := load.NewProcessors(n.pods.cmd.Process.Pid, b.outside.cmd.Process.Pid)
	if err != nil {
		return err
	}
	before, err := cpu.Used()
	if err != nil {
		return err
	}
	r, err := w.by.do(order{Netns: w.from.Path, To: w.to, Conns: conns, For: b.slice})
	if err != nil {
		return err
	}
	after, err := cpu.Used()
	if err != nil {
		return err
	}
	name := n.name + "_" + w.kind
	if conns == 1 {
		b.series.Add(name+"_p50_us", r.P50)
		b.series.Add(name+"_p99_us", r.P99)
		return nil
	}
	b.series.Add(name+"_per_s", float64(r.Count)/r.Took.Seconds())
	b.series.Add(name+"_cpu_us", float64((after-before).Microseconds())/float64(r.Count))
	return nil
}

// keepUp keeps one node busy.
func (b *bench) keepUp(what string, d time.Duration) error {
	name, kind, _ := strings.Cut(what, " ")
	for _, n := range b.nodes {
		for _, w := range b.ways(n) {
			if n.name != name || w.kind != kind {
				continue
			}
			fmt.Fprintf(os.Stderr, "watch %s now\n", what)
			for start := time.Now(); time.Since(start) < d; {
				r, err := w.by.do(order{Netns: w.from.Path, To: w.to, Conns: atATime, For: d / 10})
				if err != nil {
					return err
				}
				fmt.Printf("%s: %.0f a second; one takes %.0f us, at the 99th percentile %.0f, at most %.0f\n", what, float64(r.Count)/r.Took.Seconds(), r.P50, r.P99, r.Max)
			}
			return errors.Join(n.decided(), retransmitted(n.outside), retransmitted(n.client), retransmitted(n.backend))
		}
	}
	return fmt.Errorf("-watch %q: want a node and clusterip or nodeport", what)
}

// ratios are the figures that there are aims for, and the same over NodePorts.
func (b *bench) ratios() error {
	few, many := short(b.services[0]), b.most()
	var errs []error
	for _, kind := range []string{"clusterip", "nodeport"} {
		of := func(side, services string) string { return side + "_" + services + "_" + kind + "_per_s" }
		suffix := ""
		if kind == "nodeport" {
			suffix = "_nodeport"
		}
		for _, side := range sides() {
			name := kind + "_" + many + "_vs_" + few
			if side != "weft" {
				name = side + "_" + name
			}
			errs = append(errs, b.series.Ratio(name, of(side, many), of(side, few)))
			for _, services := range b.services {
				if side != "weft" {
					errs = append(errs, b.series.Ratio("weft_vs_"+side+"_"+short(services)+suffix, of("weft", short(services)), of(side, short(services))))
				}
			}
		}
	}
	return errors.Join(errs...)
}

// promised are the figures that a run must have.
func (b *bench) promised() []string {
	many := b.most()
	names := []string{
		"clusterip_" + many + "_vs_1", "nodeport_" + many + "_vs_1", "program_" + many + "_s", "one_change_ms_p99",
		"agent_rss_mib_" + many, "map_memory_mib_" + many, "agent_restart_ms_" + many, "restart_lost_packets", "restart_resets",
	}
	for _, side := range sides()[1:] {
		names = append(names, "weft_vs_"+side+"_"+many, "weft_vs_"+side+"_1")
	}
	if b.with != "" {
		names = append(names, "above_bare_ns")
	}
	return names
}

func (b *bench) write() error {
	if err := b.ratios(); err != nil {
		return err
	}
	f, err := figures.NewFile(b.turns, 0)
	if err != nil {
		return err
	}
	if err := f.Take(b.series, func(string) int { return b.turns }); err != nil {
		return err
	}
	for name, v := range b.once {
		f.Figures[name] = figures.Round(v)
	}
	if b.with != "" {
		if err := f.TakeOver(b.with, "above_bare_ns", "native_programs_ns", "bare_programs_ns"); err != nil {
			return err
		}
	}
	for _, name := range b.promised() {
		if _, ok := f.Figures[name]; !ok {
			return fmt.Errorf("%s was not measured", name)
		}
	}
	return f.Write(b.out)
}
