// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/weft-net/weft/internal/cni"
	"github.com/weft-net/weft/test/bench/sandbox"
)

// trafficFor is longer than all restarts take; traffic is ended after them.
const trafficFor = 2 * time.Minute

// restarts kills the agent under all pods and starts it anew, some times, while
// numbered datagrams and a stream go from one pod to another.
func restarts(f figures, pods []pod, o options) (err error) {
	a, err := newRealAgent(o)
	if err != nil {
		return err
	}
	if _, err := sandbox.Netns("weft-health"); err != nil { // as `weft-agent init` does
		return err
	}
	if err := a.start(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.kill()) }()
	if err := a.serving(); err != nil {
		return err
	}
	if _, err := oneByOne(pods[1:], func(p pod) error { return ask(p.request("ADD")) }); err != nil {
		return err
	}
	resp, err := call(pods[0].request("ADD"))
	if err != nil {
		return err
	}
	t, err := startTraffic(o.traffic, pods[1], pods[0], resp.Result.IPs[0])
	if err != nil {
		return err
	}
	defer t.kill()
	var took samples
	for range o.rounds {
		if err := a.kill(); err != nil {
			return err
		}
		start := time.Now()
		if err := errors.Join(a.start(), a.serving()); err != nil {
			return err
		}
		took = append(took, time.Since(start))
	}
	lost, resets, err := t.end()
	if err != nil {
		return err
	}
	name := fmt.Sprintf("agent_restart_ms_%d_pods", len(pods))
	f[name], f[name+"_max"] = took.quantile(0.5), took.quantile(1)
	f["restart_lost_packets"], f["restart_resets"] = lost, resets
	return nil
}

// serving returns once the agent would take an ADD: its socket answers and says
// that all is well, which it does once what is pinned was verified.
func (a *realAgent) serving() error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ask(cni.Request{Command: "STATUS"})
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("agent does not serve: %w; it said:\n%s", err, tail(a.log.String()))
		}
	}
}

// traffic is what test/traffic carries between two pods.
type traffic struct {
	recv, send *exec.Cmd
	out, log   bytes.Buffer
}

func inPod(p pod, program string, args ...string) *exec.Cmd {
	cmd := exec.Command("nsenter", append([]string{"--net=" + p.netns, program}, args...)...)
	cmd.Stderr = os.Stderr
	return cmd
}

func startTraffic(program string, from, to pod, addr netip.Addr) (*traffic, error) {
	t := &traffic{recv: inPod(to, program, "recv")}
	if err := t.recv.Start(); err != nil {
		return nil, err
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		// The receiver listens once it answers to its own pod.
		try := inPod(to, program, "send", "--to", addr.String(), "--duration", "20ms")
		try.Stderr = nil
		err := try.Run()
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			return nil, errors.Join(fmt.Errorf("traffic: receiver does not answer: %w", err), t.recv.Process.Kill())
		}
	}
	t.send = inPod(from, program, "send", "--to", addr.String(), "--duration", trafficFor.String())
	t.send.Stdout, t.send.Stderr = &t.out, &t.log
	return t, t.send.Start()
}

func (t *traffic) kill() {
	_ = t.recv.Process.Kill()
	_ = t.send.Process.Kill()
}

// end stops the traffic and returns what was lost.
func (t *traffic) end() (lost, resets float64, err error) {
	if err := t.send.Process.Signal(syscall.SIGTERM); err != nil {
		return 0, 0, fmt.Errorf("traffic ended before its time: %w: %s", err, t.log.String())
	}
	werr := t.send.Wait() // exits 1 where something was lost
	var r struct {
		Sent, Lost uint64
		TCPBytes   uint64
		TCPResets  int
	}
	err = json.Unmarshal(t.out.Bytes(), &r)
	if err == nil && (r.Sent == 0 || r.TCPBytes == 0) {
		err = errors.New("nothing was sent")
	}
	if err != nil {
		return 0, 0, fmt.Errorf("traffic: %w: %s%s", errors.Join(err, werr), t.out.String(), t.log.String())
	}
	return float64(r.Lost), float64(r.TCPResets), nil
}
