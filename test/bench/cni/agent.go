// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/cilium/statedb"

	"github.com/weft-net/weft/internal/cni/server"
	"github.com/weft-net/weft/internal/datapath"
	"github.com/weft-net/weft/internal/datapath/link"
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

// clocked notes how long the manager takes for each call.
type clocked struct {
	*endpoint.Manager
	mu               sync.Mutex
	add, del         samples
	addWork, delWork samples
}

// observe is the manager's Observer: it knows how long a call stood in line.
func (c *clocked) observe(op string, took, wait time.Duration, _ error) {
	switch op {
	case "add":
		c.note(&c.addWork, took-wait)
	case "delete":
		c.note(&c.delWork, took-wait)
	}
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
func (c *clocked) take() answer {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := answer{Add: c.add, Del: c.del, AddWork: c.addWork, DelWork: c.delWork}
	c.add, c.del, c.addWork, c.delWork = nil, nil, nil, nil
	return a
}

// agent is the process that the figures are about: the CNI of an agent. It
// answers orders on stdin until that ends.
func agent() (err error) {
	ctx, cancel := context.WithCancel(context.Background())
	log := slog.New(slog.DiscardHandler)
	dp, err := datapath.Open(datapath.Options{Root: bpffs + "/weft", IPv4: true, IPv6: true, Log: log})
	if err != nil {
		cancel()
		return err
	}
	defer func() { err = errors.Join(err, dp.Close(), datapath.Unload(bpffs+"/weft")) }()
	c := &clocked{}
	m, err := newManager(dp, c.observe, log)
	if err != nil {
		cancel()
		return err
	}
	c.Manager = m
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
	return obey(c)
}

// order is what the executing process asks of the agent's.
type order struct {
	Ranges bool // give pods another range once all addresses of the last one are free
	Take   bool // tell the durations noted since the last time
}

// answer to an order.
type answer struct {
	Busy             uint64 // addresses that are not free
	Add, Del         samples
	AddWork, DelWork samples // the same without the time in line
	Error            string
}

func busy(c *clocked) uint64 {
	st := c.IPAM()
	n := st.Outside
	for _, r := range st.Ranges {
		n += r.Used
	}
	return n
}

func obey(c *clocked) error {
	turn := 0
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var o order
		if err := in.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		var a answer
		if o.Take {
			a = c.take()
		}
		if a.Busy = busy(c); o.Ranges && a.Busy == 0 {
			turn++
			if err := c.SetRanges([]netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", turn)), ranges[1]}); err != nil {
				a.Error = err.Error()
			}
		}
		if err := out.Encode(a); err != nil {
			return err
		}
	}
}

func newManager(dp *datapath.Datapath, observe endpoint.Observer, log *slog.Logger) (*endpoint.Manager, error) {
	links, err := link.New("", log)
	if err != nil {
		return nil, err
	}
	if err := links.EnsureForwarding(true, true); err != nil {
		return nil, err
	}
	db := statedb.New()
	eps, err := table.NewEndpoints(db)
	if err != nil {
		return nil, err
	}
	m, err := endpoint.New(endpoint.Params{
		Node: nodeName, Links: links, Datapath: kernel{dp}, Log: log, Observe: observe,
		Rows:     endpoint.MapRows{Endpoints: dp.Maps().Endpoints, IPCache: dp.Maps().IPCache},
		Settings: endpoint.Settings{Families: ipam.Families{V4: true, V6: true}, MTU: func() int { return 1500 }},
		State:    endpoint.State{DB: db, Endpoints: eps},
	})
	if err != nil {
		return nil, err
	}
	return m, errors.Join(m.Restore(context.Background()), m.SetNodeAddrs([]netip.Addr{netip.MustParseAddr(nodeAddr)}), m.SetRanges(ranges))
}
