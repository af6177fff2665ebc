// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"sync"
	"time"

	"github.com/cilium/statedb"

	"github.com/weft-net/weft/internal/cni"
	"github.com/weft-net/weft/internal/cni/server"
	"github.com/weft-net/weft/internal/datapath"
	"github.com/weft-net/weft/internal/datapath/link"
	"github.com/weft-net/weft/internal/datapath/reason"
	"github.com/weft-net/weft/internal/endpoint"
	"github.com/weft-net/weft/internal/ipam"
	"github.com/weft-net/weft/internal/table"
)

var ranges = []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:244:1::/64")}

// kernel is the datapath as the endpoint manager wants it.
type kernel struct{ *datapath.Datapath }

func (k kernel) PurgeAddrs(addrs ...netip.Addr) error {
	_, err := k.Maps().CT.PurgeAddrs(addrs...)
	return err
}

// shared is kernel with filter blocks instead of tcx links.
type shared struct {
	kernel
	link.Blocks
}

func (s shared) AttachEndpoint(_ string, ifindex int) error { return s.Attach(ifindex) }
func (s shared) DetachEndpoint(string) error                { return nil } // went with the link

// clocked notes how long the manager takes for each call.
type clocked struct {
	*endpoint.Manager
	mu       sync.Mutex
	add, del samples
}

func (c *clocked) Add(ctx context.Context, r endpoint.AddRequest) (table.Endpoint, error) {
	start := time.Now()
	ep, err := c.Manager.Add(ctx, r)
	c.note(&c.add, time.Since(start))
	return ep, err
}

func (c *clocked) Delete(ctx context.Context, containerID, ifname string) error {
	start := time.Now()
	err := c.Manager.Delete(ctx, containerID, ifname)
	c.note(&c.del, time.Since(start))
	return err
}

func (c *clocked) note(to *samples, d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	*to = append(*to, d)
}

// take returns what was noted since the last time.
func (c *clocked) take() (add, del samples) {
	c.mu.Lock()
	defer c.mu.Unlock()
	add, del = c.add, c.del
	c.add, c.del = nil, nil
	return add, del
}

// latencies runs the CNI of an agent in this process and measures it.
func latencies(f figures, pods []pod, plugin string, o options) (err error) {
	ctx, cancel := context.WithCancel(context.Background())
	log := slog.New(slog.DiscardHandler)
	dp, err := datapath.Open(datapath.Options{Root: bpffs + "/weft", IPv4: true, IPv6: true, Log: log})
	if err != nil {
		cancel()
		return err
	}
	defer func() { err = errors.Join(err, dp.Close(), datapath.Unload(bpffs+"/weft")) }()
	m, err := newManager(dp, o.attach, log)
	if err != nil {
		cancel()
		return err
	}
	c := &clocked{Manager: m}
	s, err := server.New(server.Params{Endpoints: c, Log: log})
	if err != nil {
		cancel()
		return err
	}
	var wg sync.WaitGroup
	var managed, served error
	wg.Go(func() { managed = m.Run(ctx) })
	wg.Go(func() { served = s.Run(ctx) })
	defer func() {
		cancel()
		wg.Wait()
		err = errors.Join(err, managed, served)
	}()
	if err := awaitAgent(ctx); err != nil {
		return err
	}
	return all(f, c, pods, plugin, o.rounds)
}

func newManager(dp *datapath.Datapath, attach string, log *slog.Logger) (*endpoint.Manager, error) {
	links, err := link.New("", log)
	if err != nil {
		return nil, err
	}
	if err := links.EnsureForwarding(true, true); err != nil {
		return nil, err
	}
	var side endpoint.Datapath = kernel{dp}
	if attach == "shared" {
		side = shared{kernel{dp}, link.Blocks{FromPod: dp.Program(reason.FromPod).FD(), ToPod: dp.Program(reason.ToPod).FD()}}
	}
	db := statedb.New()
	eps, err := table.NewEndpoints(db)
	if err != nil {
		return nil, err
	}
	m, err := endpoint.New(endpoint.Params{
		Node: nodeName, Links: links, Datapath: side, Log: log,
		Rows:     endpoint.MapRows{Endpoints: dp.Maps().Endpoints, IPCache: dp.Maps().IPCache},
		Settings: endpoint.Settings{Families: ipam.Families{V4: true, V6: true}, MTU: func() int { return 1500 }},
		State:    endpoint.State{DB: db, Endpoints: eps},
	})
	if err != nil {
		return nil, err
	}
	return m, errors.Join(m.Restore(context.Background()), m.SetNodeAddrs([]netip.Addr{netip.MustParseAddr(nodeAddr)}), m.SetRanges(ranges))
}

// awaitAgent returns once the socket answers.
func awaitAgent(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := ask(cni.Request{Command: "STATUS"})
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

// all measures each kind. Pods leave fewer addresses than there are for a round
// each within the 30 s of rest, so the rounds' ranges rotate.
func all(f figures, c *clocked, pods []pod, plugin string, rounds int) error {
	exe := func(command string) func(pod) error {
		return func(p pod) error { return execute(plugin, command, p) }
	}
	socket := func(command string) func(pod) error {
		return func(p pod) error {
			_, err := ask(p.request(command))
			return err
		}
	}
	kinds := []struct {
		at, around string // names of figures: at the agent, around the call; empty: not told
		order      func([]pod, func(pod) error) (samples, error)
		call       func(string) func(pod) error
	}{
		{"cni_%s", "cni_exec_%s", oneByOne, exe},
		{"cni_%s_burst", "cni_exec_%s_burst", together, exe},
		{"", "cni_%s_flood", together, socket},
	}
	turn := 0
	for _, k := range kinds {
		var agentAdd, agentDel, add, del samples
		for range rounds {
			turn++
			if err := c.SetRanges([]netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", turn)), ranges[1]}); err != nil {
				return err
			}
			a, err := k.order(pods, k.call("ADD"))
			if err != nil {
				return err
			}
			d, err := k.order(pods, k.call("DEL"))
			if err != nil {
				return err
			}
			add, del = append(add, a...), append(del, d...)
			a, d = c.take()
			agentAdd, agentDel = append(agentAdd, a...), append(agentDel, d...)
		}
		f.latency(fmt.Sprintf(k.around, "add"), add)
		f.latency(fmt.Sprintf(k.around, "del"), del)
		if k.at != "" {
			f.latency(fmt.Sprintf(k.at, "add"), agentAdd)
			f.latency(fmt.Sprintf(k.at, "del"), agentDel)
		}
	}
	return nil
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
func execute(plugin, command string, p pod) error {
	cmd := exec.Command(plugin)
	cmd.Env = p.environment(command)
	cmd.Stdin = bytes.NewReader([]byte(conf))
	if out, err := cmd.Output(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", command, p.name, err, out)
	}
	return nil
}

// ask sends one request over the socket.
func ask(r cni.Request) (*cni.Response, error) {
	conn, err := net.Dial("unix", cni.SocketPath)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := cni.WriteMessage(conn, r); err != nil {
		return nil, err
	}
	var resp cni.Response
	if err := cni.ReadMessage(conn, &resp); err != nil {
		return nil, err
	}
	if resp.Error != nil {
		return nil, resp.Error
	}
	return &resp, nil
}
