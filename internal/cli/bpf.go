// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/datapath"
	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/rpc"
)

func (a *app) bpfCommand() *cobra.Command {
	// Cilium's runbooks write `bpf ct list global`; there is only one table here.
	global := func(cmd *cobra.Command, args []string) error {
		if len(args) > 1 || (len(args) == 1 && args[0] != "global") {
			return fmt.Errorf("%s: only \"global\" may follow", cmd.CommandPath())
		}
		return nil
	}
	return group("bpf", "What the kernel holds, read from the BPF maps",
		group("endpoint", "Local endpoints as the programs see them",
			listCommand[maps.EndpointRow](a, listing{
				use: "list", short: "List the endpoint map",
				verb: []string{"bpf", "endpoint", "list"}, path: rpc.PathBPFEndpoint,
				offline: a.pinned(func(s *maps.Set) (any, error) { return s.Endpoints.List() }),
			})),
		group("ipcache", "Who stands behind an address",
			listCommand[maps.IPCacheRow](a, listing{
				use: "list", short: "List the ipcache maps",
				verb: []string{"bpf", "ipcache", "list"}, path: rpc.PathBPFIPCache,
				offline: a.pinned(func(s *maps.Set) (any, error) { return s.IPCache.List() }),
			})),
		group("ct", "Connections that the datapath follows",
			listCommand[maps.CTRow](a, listing{
				use: "list [global]", short: "List the conntrack maps", args: global,
				verb: []string{"bpf", "ct", "list"}, path: rpc.PathBPFCT,
				offline: a.pinned(func(s *maps.Set) (any, error) { return s.CT.List(0) }),
			})),
		group("nat", "Flows that leave with the node's address",
			listCommand[maps.NATRow](a, listing{
				use: "list", short: "List the maps of masqueraded flows",
				verb: []string{"bpf", "nat", "list"}, path: rpc.PathBPFNAT,
				offline: a.pinned(func(s *maps.Set) (any, error) { return s.NAT.List(0) }),
			}),
			listCommand[flushed](a, listing{
				use: "flush", short: "Forget all masqueraded flows; those that go on take their ports again",
				verb: []string{"bpf", "nat", "flush"}, local: a.flushNAT,
			})),
		group("lb", "Services and their backends, and the sockets that talk to them", a.lbListCommand(),
			group("maglev", "Tables by which connections from outside are spread over backends",
				listCommand[maps.MaglevRow](a, listing{
					use: "list", short: "List what Maglev tables give each backend; TABLE is the same on nodes that choose alike",
					verb: []string{"bpf", "lb", "maglev", "list"}, path: rpc.PathBPFLBMaglev,
					offline: a.pinned(func(s *maps.Set) (any, error) { return s.Services.Maglev() }),
				}))),
		group("map", "The maps themselves: how full they are and what they cost",
			listCommand[maps.MapRow](a, listing{
				use: "list", short: "List the maps with their entries, capacity and pressure (1: refuses or evicts)",
				verb: []string{"bpf", "map", "list"}, path: rpc.PathBPFMaps,
				offline: a.pinned(func(s *maps.Set) (any, error) { return s.Fill() }),
			})),
		group("metrics", "Packets and bytes by hook and reason",
			listCommand[maps.MetricRow](a, listing{
				use: "list", short: "List the counters",
				verb: []string{"bpf", "metrics", "list"}, path: rpc.PathBPFMetrics,
				offline: a.pinned(func(s *maps.Set) (any, error) { return s.Metrics.List() }),
			})),
	)
}

// lbListCommand lists one of three things, by Cilium's flags.
func (a *app) lbListCommand() *cobra.Command {
	list := []string{"bpf", "lb", "list"}
	c := listCommand[maps.LBRow](a, listing{
		use: "list", short: "List the load-balancing maps",
		verb: list, path: rpc.PathBPFLB,
		offline: a.pinned(func(s *maps.Set) (any, error) { return s.Services.LB() }),
	})
	others := map[string]*cobra.Command{
		"backends": listCommand[maps.BackendRow](a, listing{
			verb: append(list, "--backends"), path: rpc.PathBPFLBBackends,
			offline: a.pinned(func(s *maps.Set) (any, error) { return s.Services.Backends() }),
		}),
		"revnat": listCommand[maps.SocketRow](a, listing{
			verb: append(list, "--revnat"), path: rpc.PathBPFLBSockets,
			offline: a.pinned(func(s *maps.Set) (any, error) { return s.Services.Sockets() }),
		}),
	}
	others["connections"] = listCommand[maps.LBConnRow](a, listing{
		verb: append(list, "--connections"), path: rpc.PathBPFLBConns,
		offline: a.pinned(func(s *maps.Set) (any, error) { return s.LBConns.List(0) }),
	})
	frontends := c.RunE
	c.Flags().Bool("backends", false, "list the backends that frontends name")
	c.Flags().Bool("revnat", false, "list the sockets that talk to a backend and are told that it is the service")
	c.Flags().Bool("connections", false, "list the connections that came from outside, with the backend that each got")
	c.MarkFlagsMutuallyExclusive("backends", "revnat", "connections")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		for flag, other := range others {
			if on, err := cmd.Flags().GetBool(flag); err != nil {
				return err
			} else if on {
				other.SetContext(cmd.Context())
				return other.RunE(other, args)
			}
		}
		return frontends(cmd, args)
	}
	return c
}

// pinned reads rows from the maps that the last agent left pinned.
func (a *app) pinned(read func(*maps.Set) (any, error)) func(context.Context) (any, error) {
	return func(context.Context) (any, error) {
		s, err := datapath.OpenMaps(a.paths.pins)
		if err != nil {
			return nil, err
		}
		rows, err := read(s)
		return rows, errors.Join(err, s.Close())
	}
}

// flushed tells how much a flush removed.
type flushed struct {
	Removed int `json:"removed"`
}

// TableHeader names the columns of TableRow.
func (*flushed) TableHeader() []string { return []string{"REMOVED"} }

// TableRow renders the row under TableHeader.
func (f *flushed) TableRow() []string { return []string{strconv.Itoa(f.Removed)} }

// flushNAT empties the pinned maps of masqueraded flows. The agent has no part
// in it: the maps are the state.
func (a *app) flushNAT(context.Context) (any, error) {
	s, err := datapath.OpenMapsToWrite(a.paths.pins)
	if err != nil {
		return nil, err
	}
	n, err := s.NAT.Flush()
	return []flushed{{n}}, errors.Join(err, s.Close())
}

// leftBehind says what forwards on a node whose agent does not answer; nil
// where nothing does.
func (a *app) leftBehind(context.Context) *rpc.Component {
	s, err := datapath.OpenMaps(a.paths.pins)
	if err != nil {
		return nil
	}
	_ = s.Close() // read only: nothing to lose
	links, err := os.ReadDir(filepath.Join(a.paths.pins, "links"))
	if err != nil || len(links) == 0 {
		return &rpc.Component{Name: "Datapath", State: rpc.StateFailing, Message: "maps are pinned but no program is attached"}
	}
	c := &rpc.Component{
		Name: "Datapath", State: rpc.StateWarning,
		Message: fmt.Sprintf("%d programs stay attached and forward without an agent; nothing new is learned", len(links)),
	}
	for _, l := range links {
		c.Details = append(c.Details, l.Name())
	}
	return c
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
