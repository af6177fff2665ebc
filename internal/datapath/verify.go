// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/weft-net/weft/internal/datapath/reason"
)

// Problem is one place where the kernel differs from what was asked for.
type Problem struct {
	Device  string `json:"device"`
	Hook    string `json:"hook"`
	Message string `json:"message"` // what is wrong and what is there instead
}

func (p Problem) String() string { return p.Device + " " + p.Hook + ": " + p.Message }

// Verify compares what is attached with what AttachEndpoint and SyncDevices
// were last asked for. No problem: an empty slice.
func (d *Datapath) Verify(ctx context.Context) []Problem {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []Problem
	for name, w := range d.wanted {
		for _, h := range w.hooks {
			if ctx.Err() != nil {
				return out
			}
			if msg := d.verifyHook(name, w.index, h); msg != "" {
				out = append(out, Problem{Device: name, Hook: h.String(), Message: msg})
			}
		}
	}
	slices.SortFunc(out, func(a, b Problem) int { return strings.Compare(a.String(), b.String()) })
	return out
}

func (d *Datapath) verifyHook(name string, ifindex int, h reason.Hook) string {
	q, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: attachType(h)})
	if err != nil {
		return fmt.Sprintf("cannot be queried: %v", err)
	}
	want, err := d.programs[h].Info()
	if err != nil {
		return fmt.Sprintf("program cannot be queried: %v", err)
	}
	id, _ := want.ID()
	at := slices.IndexFunc(q.Programs, func(p link.AttachedProgram) bool { return p.ID == id })
	switch {
	case at < 0 && len(q.Programs) == 0:
		return "not attached: the hook is empty"
	case at < 0:
		return "not attached: the hook holds " + describe(q.Programs)
	case at > 0:
		return "runs after " + describe(q.Programs[:at]) + ", which can keep packets from it"
	}
	if _, err := os.Stat(filepath.Join(d.root, linksDir, linkName(name, h))); err != nil {
		return "attached, but the pin is gone: it would not survive this agent"
	}
	return ""
}

// describe names programs that are not ours, for the one who must find their owner.
func describe(ps []link.AttachedProgram) string {
	var out []string
	for _, p := range ps {
		s := fmt.Sprintf("program %d", p.ID)
		if prog, err := ebpf.NewProgramFromID(p.ID); err == nil {
			if info, err := prog.Info(); err == nil {
				s = fmt.Sprintf("program %d (%s)", p.ID, info.Name)
				if uid, ok := info.CreatedByUID(); ok {
					s += fmt.Sprintf(" of UID %d", uid)
				}
			}
			_ = prog.Close()
		}
		out = append(out, s)
	}
	return strings.Join(out, ", ")
}
