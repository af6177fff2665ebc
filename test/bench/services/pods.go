// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/test/bench/load"
	"github.com/weft-net/weft/test/bench/sandbox"
)

// order is what the processes of pods are told, one at a time.
type order struct {
	Netns string // path
	// Serve, if valid, is where to listen: at this port and the next ones.
	Serve netip.AddrPort
	// To is the Service to ask.
	To    netip.AddrPort
	Conns int           // at a time, for For
	For   time.Duration // a load
	// Until asks again and again, at most for For, until there is an answer, and if
	// Want is not negative, this one.
	Until bool
	Want  int
}

// result of an order.
type result struct {
	Count int
	Took  time.Duration
	P50   float64 // us, of one connection
	P99   float64
	Max   float64
	Error string
}

// podsProcess is a process in which pods' sockets are: in the cgroup of a node, as
// pods are, or in none, for clients outside.
type podsProcess struct {
	cmd *exec.Cmd
	in  *json.Encoder
	out *json.Decoder
}

// newPods starts one, in a cgroup unless that is "".
func newPods(cgroup string) (*podsProcess, error) {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), podsEnv+"=1")
	cmd.Stderr = os.Stderr
	if cgroup != "" {
		attr, done, err := into(cgroup)
		if err != nil {
			return nil, err
		}
		defer done()
		cmd.SysProcAttr = attr
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	return &podsProcess{cmd: cmd, in: json.NewEncoder(in), out: json.NewDecoder(out)}, cmd.Start()
}

// into lets a process begin in a cgroup.
func into(cgroup string) (*syscall.SysProcAttr, func(), error) {
	dir, err := os.Open(cgroup)
	if err != nil {
		return nil, nil, err
	}
	return &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}, func() { _ = dir.Close() }, nil
}

func (p *podsProcess) do(o order) (r result, err error) {
	if err := p.in.Encode(o); err != nil {
		return r, err
	}
	if err := p.out.Decode(&r); err != nil {
		return r, err
	}
	if r.Error != "" {
		return r, errors.New(r.Error)
	}
	return r, nil
}

// pods is that process.
func pods() error {
	// Threads that wait in the kernel must find their place when they come back,
	// and nothing may stop them all.
	runtime.GOMAXPROCS(64)
	debug.SetGCPercent(-1)
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var o order
		if err := in.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		r, err := o.carryOut()
		if err != nil {
			r.Error = err.Error()
		}
		if err := out.Encode(r); err != nil {
			return err
		}
		runtime.GC()
	}
}

func (o order) carryOut() (r result, err error) {
	s, err := sandbox.OpenSpace(o.Netns, o.Netns)
	if err != nil {
		return r, err
	}
	switch {
	case o.Serve.IsValid():
		return r, listen(s, o.Serve) // keeps the namespace
	case o.Until:
		err = s.In(func() (err error) { r.Took, err = o.until(); return err })
	default:
		r, err = o.load(s)
	}
	return r, errors.Join(err, s.Close())
}

// until asks until there is the answer.
func (o order) until() (time.Duration, error) {
	for start := time.Now(); ; {
		b, err := load.Once(o.To)
		took := time.Since(start)
		if err == nil && (o.Want < 0 || int(b) == o.Want) {
			return took, nil
		}
		if took > o.For {
			return took, fmt.Errorf("%s: not within %s: %d, %w", o.To, o.For, b, err)
		}
		// A core is for those who are waited for.
		_ = unix.Nanosleep(&unix.Timespec{Nsec: 500_000}, nil)
	}
}

// load makes connections, one for each question, Conns at a time.
func (o order) load(s sandbox.Space) (r result, err error) {
	var ready, done sync.WaitGroup
	var stop atomic.Bool
	start := make(chan struct{})
	var began time.Time
	var inTime atomic.Int64
	errs, times := make([]error, o.Conns), make([][]time.Duration, o.Conns)
	for i := range o.Conns {
		ready.Add(1)
		times[i] = make([]time.Duration, 0, 1<<14)
		done.Go(func() {
			errs[i] = s.In(func() error {
				err := load.Pin(load.ClientCPU)
				ready.Done()
				if err != nil {
					return err
				}
				<-start
				for !stop.Load() {
					asked := time.Now()
					if _, err := load.Once(o.To); err != nil {
						return err
					}
					times[i] = append(times[i], time.Since(asked))
					if time.Since(began) < o.For {
						inTime.Add(1)
					}
				}
				return nil
			})
		})
	}
	ready.Wait()
	began = time.Now()
	close(start)
	<-time.After(o.For)
	stop.Store(true)
	done.Wait()
	all := slices.Sorted(slices.Values(slices.Concat(times...)))
	// One that stalls at the end must not count for all.
	if r.Count, r.Took = int(inTime.Load()), o.For; r.Count == 0 {
		return r, errors.Join(fmt.Errorf("%s: nothing got through", o.To), errors.Join(errs...))
	}
	r.P50, r.P99, r.Max = quantile(all, 0.5), quantile(all, 0.99), quantile(all, 1)
	return r, errors.Join(errs...)
}

// quantile returns that of sorted durations, in microseconds, by the nearest rank.
func quantile(sorted []time.Duration, q float64) float64 {
	return float64(sorted[max(int(math.Ceil(q*float64(len(sorted))))-1, 0)].Nanoseconds()) / 1000
}
