// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/weft-net/weft/lab/internal/host"
	"github.com/weft-net/weft/lab/internal/plan"
	"github.com/weft-net/weft/lab/internal/state"
)

// Status is what a lab looks like now.
type Status struct {
	Name  string                       `json:"name"`
	Ready bool                         `json:"ready"` // up reached its end, and the API server answers
	API   string                       `json:"api"`
	Hosts []HostStatus                 `json:"hosts"`
	Cuts  []state.Cut                  `json:"cuts"`
	Links map[string]state.Impairments `json:"links"`
}

// HostStatus is one host of the lab.
type HostStatus struct {
	Name     string              `json:"name"`
	Kind     plan.Kind           `json:"kind"`
	Subnet   string              `json:"subnet"`
	V4       string              `json:"v4"`
	V6       string              `json:"v6"`
	Pid      int                 `json:"pid,omitempty"` // of PID 1, as the machine numbers it
	PodCIDRs []string            `json:"podCIDRs,omitempty"`
	State    string              `json:"state"`
	Programs []host.ProgramState `json:"programs,omitempty"`
}

// Status looks at the lab.
func (l *Lab) Status(ctx context.Context) *Status {
	s := &Status{Name: l.rec.Options.Name, Cuts: l.rec.Cuts, Links: l.rec.Links, API: "OK"}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	client, err := l.cluster.NewClient(l.netns(l.cluster.Control.Name))
	if err != nil {
		s.API = err.Error()
		return s
	}
	nodes, err := client.Nodes(ctx)
	if err != nil {
		s.API = err.Error()
	}
	s.Ready = l.rec.Ready && err == nil
	for _, h := range l.rec.Hosts {
		hs := HostStatus{Name: h.Name, Kind: h.Kind, Subnet: h.Ports[0].Subnet, V4: h.Addr4().String(), V6: h.Addr6().String(), State: "OK"}
		if h.Kind != plan.Outside {
			if hs.Pid, err = host.InitPid(l.hostDir(h.Name)); err != nil {
				hs.State = err.Error()
			}
			hs.Programs = programs(l.hostDir(h.Name))
		}
		if n, ok := nodes[h.Name]; ok && hs.Pid != 0 {
			hs.PodCIDRs = n.Spec.PodCIDRs
			if ready, why := n.Ready(); !ready {
				hs.State = "not ready: " + why
			}
		}
		s.Hosts = append(s.Hosts, hs)
	}
	return s
}

func programs(dir string) []host.ProgramState {
	b, err := os.ReadFile(filepath.Join(dir, host.StatusFile))
	if err != nil {
		return nil
	}
	var list []host.ProgramState
	if json.Unmarshal(b, &list) != nil {
		return nil
	}
	return list
}

// Print writes the status as a table.
func (s *Status) Print(out io.Writer) error {
	fmt.Fprintf(out, "lab %s: API server %s\n", s.Name, s.API)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "HOST\tSUBNET\tIPV4\tIPV6\tPOD CIDRS\tPID\tRESTARTS\tSTATE")
	for _, h := range s.Hosts {
		restarts := 0
		for _, p := range h.Programs {
			restarts += max(p.Starts-1, 0)
		}
		state, _, _ := strings.Cut(h.State, "\n")
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%d\t%s\n", h.Name, h.Subnet, h.V4, h.V6, strings.Join(h.PodCIDRs, ","), h.Pid, restarts, state)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, c := range s.Cuts {
		fmt.Fprintf(out, "cut: %s\n", c)
	}
	for name, i := range s.Links {
		fmt.Fprintf(out, "link %s: %s\n", name, i)
	}
	return nil
}
