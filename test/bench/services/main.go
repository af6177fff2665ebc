// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Command services measures what Services cost: Weft against a real kube-proxy,
// in its modes iptables (on nf_tables) and nftables, each with 1, 1,000 and 10,000
// Services of 10 endpoints that one real API server has.
//
// There is a node for each of the three sides and each number of Services, all of
// them network namespaces of this machine: with a client pod, a backend pod, and
// outside of it, behind a wire, another client. weft-agent or kube-proxy runs on a
// node until the kernel has all Services, and ends. When all nodes are ready the API
// server ends, too: what is measured then is what is in the kernel. The nodes take
// turns, a load of 0.15 s each, so that a busy neighbour hits all of them. A ratio
// is the median of the ratios within a turn.
//
// Figures of each node, "weft_10k" and the like, over its cluster IP from a pod and
// over a NodePort from outside:
//
//	*_per_s          connections a second, 16 at a time: connect, a byte there, a
//	                 byte back, close
//	*_cpu_us         processor time of one of them, client's, server's and kernel's
//	*_p50_us, *_p99_us  time of one connection, one at a time
//
//	*_strays         of all nodes of a side: packets from which a client outside could make
//	                 out no connection of its own, and answered with a reset
//
// And with 10,000 Services, while the agent or kube-proxy runs:
//
//	program_10k_s              from the start of weft-agent, with nothing in the kernel,
//	                           until all frontends and backends are there
//	list_10k_s                 of this, what the API server takes to tell everything to a client
//	                           that throws it away
//	*_program_10k_s            from the start until a connection through a Service goes well
//	one_change_ms_*            from the arrival of an event of an EndpointSlice at the agent
//	                           until its rows are in the kernel, by the agent's own account
//	one_change_write_ms_*      from before the write at the API server until the row in the
//	                           kernel has changed
//	*_change_seen_ms_*         from before the write until a new connection reaches the other backend
//	kubeproxy_iptables_10k_rules_before  rules of iptables before that of the cluster IP that is asked,
//	                           of *_rules: they are gone through one by one
//	agent_rss_mib_10k          resident memory; kubeproxy_*_rss_mib_10k likewise
//	map_memory_mib_10k         of all BPF maps of the node
//	agent_restart_ms_10k*      from the start of the agent after SIGKILL until its CNI socket says
//	                           that pods can be added, with 110 pods
//	agent_restart_synced_ms_10k  until it has compared all frontends with the kernel's
//	restart_lost_packets, restart_resets  of numbered datagrams and streams from a pod through a
//	                           cluster IP, and from outside through a NodePort, in all restarts together
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/test/bench/sandbox"
)

// What this program is inside of its namespaces, by the environment.
const (
	measureEnv = "WEFT_BENCH_SERVICES"
	podsEnv    = "WEFT_BENCH_SERVICES_PODS"  // the process of a node's pods
	cleanEnv   = "WEFT_BENCH_SERVICES_CLEAN" // takes away what outlives the namespaces
	cgroupEnv  = "WEFT_BENCH_SERVICES_CGROUP"
)

type options struct {
	out      string
	bin      string // directory of weft-agent and weft-cni
	traffic  string
	crds     string
	services []int
	turns    int
	slice    time.Duration
	limit    time.Duration
	changes  int
	restarts int
	with     string
	watch    string
}

func main() {
	o := options{services: []int{1, 1000, 10000}}
	quick := flag.Bool("quick", false, "with 1, 10 and 100 Services, to see whether this program works")
	flag.StringVar(&o.out, "out", "build/bench/services.json", "file to write the figures to")
	flag.StringVar(&o.bin, "bin", "build/bin", "directory of weft-agent and weft-cni")
	flag.StringVar(&o.traffic, "traffic", "build/bench/traffic", "the program test/traffic")
	flag.StringVar(&o.crds, "crds", "install/helm/weft/crds", "directory of Weft's definitions")
	flag.IntVar(&o.turns, "turns", 21, "times that each node carries each load")
	flag.DurationVar(&o.slice, "slice", 150*time.Millisecond, "duration of a load")
	flag.DurationVar(&o.limit, "limit", 14*time.Minute, "end everything after this time")
	flag.IntVar(&o.changes, "changes", 300, "changes of an EndpointSlice")
	flag.IntVar(&o.restarts, "restarts", 5, "restarts of the agent")
	flag.StringVar(&o.with, "with", "", "file with above_bare_ns, measured with 10,000 Services by test/bench/datapath, to be written beside these figures")
	flag.StringVar(&o.watch, "watch", "", "NODE and clusterip or nodeport, e.g. \"weft_1 clusterip\": measure nothing, but keep up this load for 10 s, to be looked at with perf")
	flag.Parse()
	if *quick {
		o.services = []int{1, 10, 100}
	}
	if err := start(o); err != nil {
		fmt.Fprintln(os.Stderr, "bench services:", err)
		os.Exit(1)
	}
}

func start(o options) error {
	switch {
	case os.Getenv(podsEnv) != "":
		return pods()
	case os.Getenv(cleanEnv) != "":
		return removeCgroups()
	case os.Getenv(measureEnv) != "":
		return measure(o)
	}
	if runtime.NumCPU() < 2 {
		return errors.New("needs two cores, one for each end of the load")
	}
	err := errors.Join(
		os.Setenv(cgroupEnv, fmt.Sprintf("weft-bench-services-%d", os.Getpid())),
		// The runtime's signals would end system calls that wait with a time limit.
		os.Setenv("GODEBUG", "asyncpreemptoff=1"),
	)
	if err != nil {
		return err
	}
	return errors.Join(sandbox.Run(measureEnv, unix.CLONE_NEWPID), sandbox.Run(cleanEnv, 0))
}
