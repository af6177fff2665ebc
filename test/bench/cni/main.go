// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Command cni measures what attaching pods costs: ADD and DEL of 110 pods, each
// with a network namespace of its own, one after the other and all at once,
// through the plugin, the socket, the endpoint manager and the real datapath.
// After that it starts the agent itself and reads its memory, idle and with 110
// pods.
//
// Everything happens in network, mount and PID namespaces of its own; nothing
// stays. The figures, in milliseconds and MiB:
//
//	cni_add_ms_*, cni_del_ms_*      at the agent, request to reply, while the
//	                                runtime executes the plugin for one pod after the other
//	cni_*_burst_ms_*                the same while it executes the plugin for all pods at once
//	cni_*_work_ms_*                 the same without the time that a request stood in
//	                                line: on N cores, the last of a burst waits for all others
//	cni_exec_*_ms_*                 around the plugin's execution, as the runtime sees it
//	cni_exec_*_burst_ms_*           the same with all plugins at once, on all cores together
//	cni_*_flood_ms_*                at a client of the socket that sends all requests
//	                                at one instant: the time of the last is that of all
//	floor_exec_*                    a program in place of the plugin that only asks
//	                                a server that answers at once
//	floor_exec_veth_burst_*         the same all at once, with a server that makes a
//	                                bare pair of devices for each pod before it answers
//	floor_veth_flood_*              all requests at one instant, and such a server
//	*_cpu_ms_*                      processor time of one execution
//	*_p99_round                     the median over the rounds of a round's 99th
//	                                percentile: what a neighbour who is busy now and
//	                                then does not spoil
//	*_p99_over_floor                how many times the floor that is; the median of the rounds
//	agent_rss_mib_*                 resident memory of weft-agent, with no API server
//
// With -restarts it kills the agent with SIGKILL instead and starts it anew, under
// numbered datagrams and a stream between two of the pods:
//
//	agent_restart_ms_*              from the start of the agent until its socket says
//	                                that pods can be added, median and maximum
//	restart_lost_packets            datagrams lost in all restarts together
//	restart_resets                  streams that ended before their time
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/test/bench/sandbox"
)

const (
	childEnv = "WEFT_BENCH_CNI"      // set inside the namespaces
	roleEnv  = "WEFT_BENCH_CNI_ROLE" // "agent": the process that the figures are about
)

type options struct {
	out    string
	bin    string // directory of weft-cni and weft-agent
	floor  string // program of the package floor
	pods   int
	rounds int

	restarts bool
	traffic  string
}

func main() {
	var o options
	flag.StringVar(&o.out, "out", "build/bench/cni.json", "file to write the figures to")
	flag.StringVar(&o.bin, "bin", "build/bin", "directory of weft-cni and weft-agent")
	flag.StringVar(&o.floor, "floor", "build/bench/floor", "the program that is executed in place of the plugin to find the floor")
	flag.IntVar(&o.pods, "pods", 110, "pods on the node")
	flag.IntVar(&o.rounds, "rounds", 5, "times that all pods are added and deleted, of each kind")
	flag.BoolVar(&o.restarts, "restarts", false, "measure restarts of the agent, and nothing else")
	flag.StringVar(&o.traffic, "traffic", "build/bench/traffic", "the program test/traffic, for -restarts")
	flag.Parse()
	var err error
	switch {
	case os.Getenv(childEnv) == "":
		err = sandbox.Run(childEnv, unix.CLONE_NEWPID)
	case os.Getenv(roleEnv) == "agent":
		err = agent()
	default:
		err = measure(o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench cni:", err)
		os.Exit(1)
	}
}

// samples are durations of one kind.
type samples []time.Duration

// quantile returns the q-th quantile in milliseconds, by the nearest rank.
func (s samples) quantile(q float64) float64 {
	if len(s) == 0 {
		return math.NaN()
	}
	c := slices.Sorted(slices.Values(s))
	i := int(math.Ceil(q*float64(len(c)))) - 1
	return float64(c[max(i, 0)].Microseconds()) / 1000
}

type figures map[string]float64

func (f figures) latency(name string, s samples) {
	f[name+"_ms_p50"] = s.quantile(0.5)
	f[name+"_ms_p99"] = s.quantile(0.99)
}

func measure(o options) error {
	plugin, err := filepath.Abs(filepath.Join(o.bin, "weft-cni"))
	if err != nil {
		return err
	}
	if _, err := os.Stat(plugin); err != nil {
		return fmt.Errorf("%w: run make build", err)
	}
	if o.floor, err = filepath.Abs(o.floor); err != nil {
		return err
	}
	f := figures{}
	if err := prepare(); err != nil {
		return err
	}
	pods, err := newPods(o.pods)
	if err != nil {
		return err
	}
	if o.restarts {
		if err := restarts(f, pods, o); err != nil {
			return fmt.Errorf("restarts: %w", err)
		}
		return write(o, f)
	}
	if err := latencies(f, pods, plugin, o); err != nil {
		return err
	}
	if err := memory(f, pods, o); err != nil {
		return fmt.Errorf("agent's memory: %w", err)
	}
	return write(o, f)
}

func write(o options, f figures) error {
	for name, v := range f {
		if math.IsNaN(v) {
			return fmt.Errorf("%s was not measured", name)
		}
	}
	b, err := json.MarshalIndent(map[string]any{"figures": f, "pods": o.pods, "rounds": o.rounds, "cpus": runtime.NumCPU()}, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(o.out), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(o.out, append(b, '\n'), 0o644); err != nil {
		return err
	}
	fmt.Println(string(b))
	return nil
}
