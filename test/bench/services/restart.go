// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/weft-net/weft/test/bench/sandbox"
)

const (
	nodePods = 110 // with the client and the backend
	// trafficFor is longer than all restarts take; traffic is ended after them.
	trafficFor = 2 * time.Minute
)

// restart kills the agent and starts it anew, some times, while traffic goes from
// a pod through a cluster IP, and from outside through a NodePort.
func (b *bench) restart(a *agent) error {
	for i := 3; i <= nodePods; i++ {
		s, err := sandbox.NewSpace(fmt.Sprintf("%s-pod-%d", a.name, i))
		if err != nil {
			return err
		}
		if _, err := a.add(s, i); err != nil {
			return err
		}
	}
	program, err := filepath.Abs(b.options.traffic)
	if err != nil {
		return err
	}
	t := traffic{program: program}
	defer t.kill()
	err = errors.Join(
		t.receive(a.node),
		t.send(a.client, a.cgroup, b.objs.traffic),
		t.send(a.outside, "", netip.AddrPortFrom(netip.MustParseAddr(nodeAddr), trafficNodePort)),
	)
	if err != nil {
		return err
	}
	var served, synced []time.Duration
	for range b.restarts {
		if err := a.kill(); err != nil {
			return err
		}
		start := time.Now()
		if err := errors.Join(a.start(), a.serving()); err != nil {
			return err
		}
		served = append(served, time.Since(start))
		if err := eventually(slowTick, time.Minute, func() error { return a.programmed(b.objs) }); err != nil {
			return err
		}
		synced = append(synced, time.Since(start))
	}
	slices.Sort(served)
	slices.Sort(synced)
	many := b.most()
	b.once["agent_restart_ms_"+many] = quantile(served, 0.5) / 1000
	b.once["agent_restart_ms_"+many+"_max"] = quantile(served, 1) / 1000
	b.once["agent_restart_synced_ms_"+many] = quantile(synced, 0.5) / 1000
	b.once["restart_lost_packets"], b.once["restart_resets"], err = t.end()
	return err
}

// traffic is what test/traffic carries.
type traffic struct {
	program  string
	receiver *exec.Cmd
	senders  []*exec.Cmd
	out      []*bytes.Buffer
}

func (t *traffic) command(args ...string) *exec.Cmd { return exec.Command(t.program, args...) }

// startIn starts a program in a namespace and, unless that is "", in a cgroup.
func startIn(s sandbox.Space, cgroup string, cmd *exec.Cmd) error {
	if cgroup != "" {
		attr, done, err := into(cgroup)
		if err != nil {
			return err
		}
		defer done()
		cmd.SysProcAttr = attr
	}
	return s.In(cmd.Start)
}

func (t *traffic) receive(n *node) error {
	t.receiver = t.command("recv", "--port", strconv.Itoa(trafficPort))
	return startIn(n.backend, n.cgroup, t.receiver)
}

// send begins once a try has gone well.
func (t *traffic) send(from sandbox.Space, cgroup string, to netip.AddrPort) error {
	args := []string{"send", "--to", to.Addr().String(), "--port", strconv.Itoa(int(to.Port())), "--duration"}
	err := eventually(slowTick, 20*time.Second, func() error {
		try := t.command(append(args, "20ms")...)
		return errors.Join(startIn(from, cgroup, try), try.Wait())
	})
	if err != nil {
		return fmt.Errorf("traffic to %s: %w", to, err)
	}
	cmd, out := t.command(append(args, trafficFor.String())...), &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = out, out
	t.senders, t.out = append(t.senders, cmd), append(t.out, out)
	return startIn(from, cgroup, cmd)
}

func (t *traffic) kill() {
	for _, cmd := range append(t.senders, t.receiver) {
		if cmd != nil && cmd.Process != nil {
			_ = cmd.Process.Kill()
		}
	}
}

// end stops the traffic and returns what was lost.
func (t *traffic) end() (lost, resets float64, err error) {
	for i, cmd := range t.senders {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			return 0, 0, fmt.Errorf("traffic ended before its time: %w: %s", err, t.out[i])
		}
		werr := cmd.Wait() // exits 1 where something was lost
		var r struct {
			Sent, Lost uint64
			TCPBytes   uint64
			TCPResets  int
		}
		err := json.NewDecoder(bytes.NewReader(t.out[i].Bytes())).Decode(&r)
		if err == nil && (r.Sent == 0 || r.TCPBytes == 0) {
			err = errors.New("nothing was sent")
		}
		if err != nil {
			return 0, 0, fmt.Errorf("traffic: %w: %s", errors.Join(err, werr), t.out[i])
		}
		lost, resets = lost+float64(r.Lost), resets+float64(r.TCPResets)
	}
	return lost, resets, nil
}
