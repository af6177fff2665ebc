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
			if msg := d.verifyHook(name, w, h); msg != "" {
				out = append(out, Problem{Device: name, Hook: h.String(), Message: msg})
			}
		}
	}
	slices.SortFunc(out, func(a, b Problem) int { return strings.Compare(a.String(), b.String()) })
	return out
}

func (d *Datapath) verifyHook(name string, w wantedDevice, h reason.Hook) string {
	info, err := d.programs.of(h).Info()
	if err != nil {
		return fmt.Sprintf("program cannot be queried: %v", err)
	}
	want, _ := info.ID()
	var before []ebpf.ProgramID // what runs at the hook by tcx, which comes first
	if d.features.tcx {
		q, err := link.QueryPrograms(link.QueryOptions{Target: w.index, Attach: attachType(h)})
		if err != nil {
			return fmt.Sprintf("cannot be queried: %v", err)
		}
		for _, p := range q.Programs {
			before = append(before, p.ID)
		}
	}
	if w.tcx {
		return d.verifyLink(name, h, want, before)
	}
	fs, err := runningFilters(w.index, h)
	if err != nil {
		return fmt.Sprintf("cannot be queried: %v", err)
	}
	return verifyOrder(want, append(before, fs...))
}

func (d *Datapath) verifyLink(name string, h reason.Hook, want ebpf.ProgramID, running []ebpf.ProgramID) string {
	if msg := verifyOrder(want, running); msg != "" {
		return msg
	}
	if _, err := os.Stat(filepath.Join(d.root, linksDir, linkName(name, h))); err != nil {
		return "attached, but the pin is gone: it would not survive this agent"
	}
	return ""
}

// verifyOrder says what is wrong with the programs of a hook, in running order.
func verifyOrder(want ebpf.ProgramID, running []ebpf.ProgramID) string {
	at := slices.Index(running, want)
	switch {
	case at < 0 && len(running) == 0:
		return "not attached: the hook is empty"
	case at < 0:
		return "not attached: the hook holds " + describe(running)
	case at > 0:
		return "runs after " + describe(running[:at]) + ", which can keep packets from it"
	}
	return ""
}

// describe names programs that are not ours, for the one who must find their owner.
func describe(ids []ebpf.ProgramID) string {
	var out []string
	for _, id := range ids {
		s := fmt.Sprintf("program %d", id)
		if prog, err := ebpf.NewProgramFromID(id); err == nil {
			if info, err := prog.Info(); err == nil {
				s = fmt.Sprintf("program %d (%s)", id, info.Name)
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
