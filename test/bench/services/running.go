// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	dto "github.com/prometheus/client_model/go"
	"golang.org/x/sys/unix"
)

const (
	// seenChanges is how many changes are looked at from a client. kube-proxy
	// writes once a second.
	seenChanges, seenProxyChanges = 50, 5
	// changeWithin is how long a change may take.
	changeWithin = time.Minute
)

// whileItRuns measures an agent that has all Services.
func (b *bench) whileItRuns(a *agent) (err error) {
	many := b.most()
	if b.once["agent_rss_mib_"+many], err = a.rss(); err != nil {
		return err
	}
	if b.once["map_memory_mib_"+many], err = a.mapMemory(); err != nil {
		return err
	}
	if err := b.changeOften(a); err != nil {
		return fmt.Errorf("changes: %w", err)
	}
	if err := b.seeChanges("weft", a.node, seenChanges); err != nil {
		return fmt.Errorf("changes as clients see them: %w", err)
	}
	if b.restarts == 0 {
		return nil
	}
	if err := b.restart(a); err != nil {
		return fmt.Errorf("restarts: %w", err)
	}
	return nil
}

// whileProxyRuns does so with a kube-proxy.
func (b *bench) whileProxyRuns(side string, p *kubeProxy) (err error) {
	if b.once[side+"_rss_mib_"+b.most()], err = p.rss(); err != nil {
		return err
	}
	if side == "kubeproxy_iptables" {
		before, all, err := p.position(b.objs)
		if err != nil {
			return err
		}
		b.once[side+"_"+b.most()+"_rules_before"], b.once[side+"_"+b.most()+"_rules"] = float64(before), float64(all)
	}
	return b.seeChanges(side, p.node, seenProxyChanges)
}

// times notes how long things took, in milliseconds.
func (b *bench) times(name string, all []time.Duration) {
	slices.Sort(all)
	b.once[name+"_p50"], b.once[name+"_p99"] = quantile(all, 0.5)/1000, quantile(all, 0.99)/1000
}

// changeOften gives a Service another backend, some times, and looks at its row.
func (b *bench) changeOften(a *agent) error {
	rows, err := ebpf.LoadPinnedMap(filepath.Join(a.root(), "maps", "weft_svc4"), &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return err
	}
	defer rows.Close()
	before, err := a.changesTaken()
	if err != nil {
		return err
	}
	var took []time.Duration
	for i := range b.changes {
		d, err := b.changeRow(a, rows, 1-i%2)
		if err != nil {
			return err
		}
		took = append(took, d)
	}
	after, err := a.changesTaken()
	if err != nil {
		return err
	}
	b.times("one_change_write_ms", took)
	for name, q := range map[string]float64{"p50": 0.5, "p99": 0.99} {
		if b.once["one_change_ms_"+name], err = between(before, after, q); err != nil {
			return err
		}
	}
	return nil
}

// changeRow returns how long it took from before the write at the API server until
// the kernel's row was another one.
func (b *bench) changeRow(a *agent, rows *ebpf.Map, backend int) (time.Duration, error) {
	key := rowKey(b.objs.change)
	had, err := rows.LookupBytes(key)
	if err != nil || had == nil {
		return 0, errors.Join(fmt.Errorf("%s has no row", b.objs.change), err)
	}
	written := make(chan error, 1)
	start := time.Now()
	go func() { written <- b.objs.switchTo(a.podIP, backend) }()
	for {
		has, err := rows.LookupBytes(key)
		took := time.Since(start)
		if err == nil && has != nil && !slices.Equal(has, had) {
			return took, <-written
		}
		if err != nil || took > changeWithin {
			return 0, errors.Join(fmt.Errorf("the row of %s stays as it is for %s", b.objs.change, took), err, <-written)
		}
		// Twenty times as often as what is measured would do; a core is the agent's.
		_ = unix.Nanosleep(&unix.Timespec{Nsec: 50_000}, nil)
	}
}

// rowKey is the key of a frontend of TCP as the kernel has it.
func rowKey(of netip.AddrPort) []byte {
	addr := of.Addr().As4()
	return append(binary.BigEndian.AppendUint16(addr[:], of.Port()), unix.IPPROTO_TCP, 0)
}

// changesTaken is the agent's account of times from an event to the kernel's row.
func (a *agent) changesTaken() (*dto.Histogram, error) {
	f, err := a.metrics()
	if err != nil {
		return nil, err
	}
	h := metric(f, "weft_event_to_kernel_duration_seconds", "frontends").GetHistogram()
	if h == nil {
		return nil, errors.New("the agent does not say how long frontends take")
	}
	return h, nil
}

// between returns a quantile, in milliseconds, of what was noted between two
// readings of a histogram: within a bucket, values count as evenly spread.
func between(before, after *dto.Histogram, q float64) (float64, error) {
	had := map[float64]uint64{}
	for _, b := range before.GetBucket() {
		had[b.GetUpperBound()] = b.GetCumulativeCount()
	}
	total := float64(after.GetSampleCount() - before.GetSampleCount())
	low, below := 0.0, 0.0
	for _, b := range after.GetBucket() {
		n := float64(b.GetCumulativeCount() - had[b.GetUpperBound()])
		if n >= q*total && n > below && !math.IsInf(b.GetUpperBound(), 1) {
			return 1000 * (low + (b.GetUpperBound()-low)*(q*total-below)/(n-below)), nil
		}
		low, below = b.GetUpperBound(), n
	}
	return 0, fmt.Errorf("%v changes, but the agent's account has no quantile %v", total, q)
}

// seeChanges gives a Service another backend, some times, and asks it until that
// answers.
func (b *bench) seeChanges(side string, n *node, times int) error {
	var took []time.Duration
	for i := range times + 1 {
		written := make(chan error, 1)
		backend := 2 + i%2 // none that it has now
		start := time.Now()
		go func() { written <- b.objs.switchTo(n.podIP, backend) }()
		_, err := n.pods.do(order{Netns: n.client.Path, To: b.objs.change, Until: true, Want: backend, For: changeWithin})
		d := time.Since(start)
		if err := errors.Join(err, <-written); err != nil {
			return err
		}
		if i > 0 { // before the first one, what was written earlier may be on its way
			took = append(took, d)
		}
	}
	b.times(side+"_change_seen_ms", took)
	return nil
}
