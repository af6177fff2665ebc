// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weft-net/weft/internal/cni"
)

// remote is the agent's process.
type remote struct {
	cmd *exec.Cmd
	in  *json.Encoder
	out *json.Decoder
	end io.Closer
}

// startAgent starts the process that the figures are about. It is one of its
// own: a runtime's forks hold up the process that they are made in.
func startAgent() (*remote, error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleEnv+"=agent")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &remote{cmd: cmd, in: json.NewEncoder(in), out: json.NewDecoder(out), end: in}, awaitAgent(context.Background())
}

func (r *remote) order(o order) (a answer, err error) {
	if err := r.in.Encode(o); err != nil {
		return a, err
	}
	if err := r.out.Decode(&a); err != nil {
		return a, fmt.Errorf("agent's process: %w", err)
	}
	if a.Error != "" {
		return a, errors.New(a.Error)
	}
	return a, nil
}

func (r *remote) stop() error { return errors.Join(r.end.Close(), r.cmd.Wait()) }

// latencies measures the CNI of an agent that consists of nothing else.
func latencies(f figures, pods []pod, plugin string, o options) (err error) {
	r, err := startAgent()
	if r != nil {
		defer func() { err = errors.Join(err, r.stop()) }()
	}
	if err != nil {
		return err
	}
	all, tails := newSeries(), map[string][]float64{}
	for range o.rounds {
		one := newSeries()
		if err := round(one, r, pods, plugin, o); err != nil {
			return err
		}
		for name, s := range one.m {
			all.add(name, s)
			tails[name] = append(tails[name], s.quantile(0.99))
		}
	}
	for name, s := range all.m {
		f.latency(name, s)
		f[name+"_ms_p99_round"] = median(tails[name])
	}
	f.overFloor(tails, "cni_exec_add_burst", "floor_exec_veth_burst")
	f.overFloor(tails, "cni_add_flood", "floor_pod_flood")
	return nil
}

// overFloor tells how many times its floor a figure is: the median of the
// rounds, as a neighbour that is busy for a round spoils that one only.
func (f figures) overFloor(tails map[string][]float64, name, floor string) {
	var ratios []float64
	for i, t := range tails[name] {
		ratios = append(ratios, t/tails[floor][i])
	}
	f[name+"_p99_over_floor"] = median(ratios)
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}

// series are the samples of all rounds by the figures' names.
type series struct {
	mu *sync.Mutex
	m  map[string]samples
}

func newSeries() series { return series{mu: &sync.Mutex{}, m: map[string]samples{}} }

func (s series) add(name string, more samples) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.m[name] = append(s.m[name], more...)
}

// awaitAgent returns once the socket answers.
func awaitAgent(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ask(cni.Request{Command: "STATUS"})
		var answered *cni.Error
		if err == nil || errors.As(err, &answered) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("agent does not answer: %w", err)
		}
	}
}

// round measures each kind once, so that a busy neighbour hits all kinds. Pods
// leave fewer addresses than there are for a round each within the 30 s of rest,
// so the ranges rotate.
func round(all series, r *remote, pods []pod, plugin string, o options) error {
	exe := func(command string) func(pod) error {
		return func(p pod) error { return execute(all, plugin, command, p) }
	}
	socket := func(command string) func(pod) error {
		return func(p pod) error { return ask(p.request(command)) }
	}
	for _, k := range []struct {
		at, around string // names of figures: at the agent, around the call; empty: not told
		order      func([]pod, func(pod) error) (samples, error)
		call       func(string) func(pod) error
	}{
		{"cni_%s", "cni_exec_%s", oneByOne, exe},
		{"cni_%s_burst", "cni_exec_%s_burst", together, exe},
		{"", "cni_%s_flood", together, socket},
	} {
		if err := settled(r); err != nil {
			return err
		}
		for _, command := range []string{"ADD", "DEL"} {
			s, err := k.order(pods, k.call(command))
			if err != nil {
				return err
			}
			all.add(fmt.Sprintf(k.around, strings.ToLower(command)), s)
		}
		noted, err := r.order(order{Take: true})
		if err != nil {
			return err
		}
		if k.at == "" {
			continue
		}
		all.add(fmt.Sprintf(k.at, "add"), noted.Add)
		all.add(fmt.Sprintf(k.at, "del"), noted.Del)
		all.add(fmt.Sprintf(k.at, "add")+"_work", noted.AddWork)
		all.add(fmt.Sprintf(k.at, "del")+"_work", noted.DelWork)
	}
	if err := settled(r); err != nil {
		return err
	}
	return floors(pods, o.floor, all)
}

// settled waits until what the last DELs left is cleared up, which would take
// part in the next figures.
func settled(r *remote) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(20 * time.Second); ; <-tick.C {
		a, err := r.order(order{Ranges: true})
		if err != nil || a.Busy == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d addresses of deleted pods are still in use", a.Busy)
		}
	}
}

func oneByOne(pods []pod, call func(pod) error) (samples, error) {
	var s samples
	for _, p := range pods {
		start := time.Now()
		if err := call(p); err != nil {
			return nil, err
		}
		s = append(s, time.Since(start))
	}
	return s, nil
}

func together(pods []pod, call func(pod) error) (samples, error) {
	s := make(samples, len(pods))
	errs := make([]error, len(pods))
	var wg sync.WaitGroup
	for i, p := range pods {
		wg.Go(func() {
			start := time.Now()
			errs[i] = call(p)
			s[i] = time.Since(start)
		})
	}
	wg.Wait()
	return s, errors.Join(errs...)
}

const conf = `{"cniVersion":"1.1.0","name":"weft","type":"weft-cni"}`

// execute does what a container runtime does.
func execute(all series, plugin, command string, p pod) error {
	cmd := exec.Command(plugin)
	cmd.Env = p.environment(command)
	cmd.Stdin = bytes.NewReader([]byte(conf))
	if out, err := cmd.Output(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", command, p.name, err, out)
	}
	all.add("cni_exec_"+strings.ToLower(command)+"_cpu", samples{cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()})
	return nil
}

// ask sends one request over the socket, whose answer says nothing but yes or no.
func ask(r cni.Request) error {
	_, err := call(r)
	return err
}

func call(r cni.Request) (resp cni.Response, err error) {
	conn, err := net.Dial("unix", cni.SocketPath)
	if err != nil {
		return resp, err
	}
	defer conn.Close()
	if err := cni.WriteMessage(conn, r); err != nil {
		return resp, err
	}
	if err := cni.ReadMessage(conn, &resp); err != nil {
		return resp, err
	}
	if resp.Error != nil {
		return resp, resp.Error
	}
	return resp, nil
}
