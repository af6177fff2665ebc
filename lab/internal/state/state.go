// SPDX-License-Identifier: Apache-2.0

// Package state keeps on disk what a lab has made, so that any later process
// can use the lab or take it away. A thing is written into the journal before
// it is made; what is not in the journal is not the lab's and is left alone.
package state

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/weft-net/weft/lab/internal/plan"
)

// Lab is the record of one lab.
type Lab struct {
	Options plan.Options           `json:"options"`
	Hosts   []plan.Host            `json:"hosts"`
	Cgroups map[string]string      `json:"cgroups"` // hierarchy's mount point → the lab's folder in it
	Cuts    []Cut                  `json:"cuts"`
	Links   map[string]Impairments `json:"links"` // a link's end at the router (n1, n1-1) → what it suffers
	Ready   bool                   `json:"ready"` // up reached its end
}

// Cut is one interruption between two hosts.
type Cut struct {
	A      string `json:"a"`
	B      string `json:"b"`
	Proto  string `json:"proto,omitempty"` // tcp, udp, icmp or empty for all
	Port   int    `json:"port,omitempty"`
	OneWay bool   `json:"oneWay,omitempty"` // only what A sends to B
}

// Impairments of a link. Zero values mean a whole link.
type Impairments struct {
	MTU     int     `json:"mtu,omitempty"`     // bytes
	WireMTU int     `json:"wireMTU,omitempty"` // larger packets vanish silently, bytes
	Loss    float64 `json:"loss,omitempty"`    // percent, each way
	DelayMS float64 `json:"delayMs,omitempty"` // each way
}

// Host finds a host of the lab.
func (l *Lab) Host(name string) (plan.Host, error) {
	var names []string
	for _, h := range l.Hosts {
		if h.Name == name {
			return h, nil
		}
		names = append(names, h.Name)
	}
	return plan.Host{}, fmt.Errorf("host %q: lab %s has %s", name, l.Options.Name, strings.Join(names, ", "))
}

// Nodes are the hosts that are Kubernetes nodes.
func (l *Lab) Nodes() []plan.Host {
	var nodes []plan.Host
	for _, h := range l.Hosts {
		if h.Kind == plan.Node {
			nodes = append(nodes, h)
		}
	}
	return nodes
}

// RemoveHost forgets a host.
func (l *Lab) RemoveHost(name string) {
	for _, h := range l.Hosts {
		if h.Name == name {
			for _, p := range h.Ports {
				delete(l.Links, p.Peer)
			}
		}
	}
	l.Hosts = slices.DeleteFunc(l.Hosts, func(h plan.Host) bool { return h.Name == name })
	l.Cuts = slices.DeleteFunc(l.Cuts, func(c Cut) bool { return c.A == name || c.B == name })
}

// Dir is the state folder of one lab.
type Dir string

// Root is where all labs keep their state.
func Root() string {
	if d := os.Getenv("WEFT_LAB_STATE"); d != "" {
		return d
	}
	return "/var/lib/weft-lab"
}

// ForLab is the folder of the lab with this name.
func ForLab(name string) Dir { return Dir(filepath.Join(Root(), name)) }

// Path joins elements to the folder.
func (d Dir) Path(elem ...string) string {
	return filepath.Join(append([]string{string(d)}, elem...)...)
}

// Name of the lab.
func (d Dir) Name() string { return filepath.Base(string(d)) }

// Exists says whether anything of the lab is left.
func (d Dir) Exists() bool {
	_, err := os.Stat(string(d))
	return err == nil
}

// Lock takes the lab for a change. The file lies beside the folder, so that
// the folder can be deleted under the lock.
func (d Dir) Lock(ctx context.Context, limit time.Duration) (*FileLock, error) {
	if err := os.MkdirAll(Root(), 0o755); err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	return Lock(ctx, string(d)+".lock", limit, func(holder string) {
		fmt.Fprintf(os.Stderr, "lab %s is in use (%s), waiting\n", d.Name(), holder)
	})
}

// Load reads the record.
func (d Dir) Load() (*Lab, error) {
	b, err := os.ReadFile(d.Path("lab.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("lab %s is not up: run `weft-lab up --name %s`", d.Name(), d.Name())
	}
	if err != nil {
		return nil, fmt.Errorf("lab %s: %w", d.Name(), err)
	}
	l := &Lab{}
	if err := json.Unmarshal(b, l); err != nil {
		return nil, fmt.Errorf("lab %s: lab.json: %w; run `weft-lab down --name %s`", d.Name(), err, d.Name())
	}
	return l, nil
}

// Save writes the record.
func (d Dir) Save(l *Lab) error {
	b, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return fmt.Errorf("lab %s: %w", d.Name(), err)
	}
	return WriteFile(d.Path("lab.json"), append(b, '\n'), 0o600)
}

// Kinds of journal entries.
const (
	KindNetns  = "netns"  // value: path of the bind mount
	KindCgroup = "cgroup" // value: path of the folder
	KindDir    = "dir"    // value: folder to remove if it is empty
	// KindController's value is a group, a blank, and a controller that the
	// group did not hand down before.
	KindController = "controller"
)

// Entry is a thing outside of the lab's folder that the lab is about to make.
type Entry struct{ Kind, Value string }

// Journal notes an entry. It must return before the thing is made.
func (d Dir) Journal(e Entry) error {
	f, err := os.OpenFile(d.Path("journal"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	if _, err = fmt.Fprintf(f, "%s %s\n", e.Kind, e.Value); err != nil {
		f.Close()
		return fmt.Errorf("journal: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}

// Entries reads the journal, the latest first. A torn last line belongs to a
// thing that was not made.
func (d Dir) Entries() ([]Entry, error) {
	f, err := os.Open(d.Path("journal"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	defer f.Close()
	var list []Entry
	r := bufio.NewReader(f)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			break
		}
		if kind, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " "); ok {
			list = append(list, Entry{kind, value})
		}
	}
	slices.Reverse(list)
	return list, nil
}

// List names all labs that have a folder.
func List() ([]string, error) {
	entries, err := os.ReadDir(Root())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("state: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// WriteFile replaces a file atomically.
func WriteFile(path string, b []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err == nil {
		err = f.Chmod(mode)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func (c Cut) String() string {
	arrow := "<->"
	if c.OneWay {
		arrow = "->"
	}
	what := "everything"
	if c.Proto != "" {
		what = c.Proto
	}
	if c.Port != 0 {
		what += fmt.Sprintf(" port %d", c.Port)
	}
	return fmt.Sprintf("%s %s %s: %s", c.A, arrow, c.B, what)
}

func (i Impairments) String() string {
	var parts []string
	if i.MTU != 0 {
		parts = append(parts, fmt.Sprintf("mtu %d", i.MTU))
	}
	if i.WireMTU != 0 {
		parts = append(parts, fmt.Sprintf("wire mtu %d", i.WireMTU))
	}
	if i.Loss != 0 {
		parts = append(parts, fmt.Sprintf("loss %g %%", i.Loss))
	}
	if i.DelayMS != 0 {
		parts = append(parts, fmt.Sprintf("delay %g ms", i.DelayMS))
	}
	if len(parts) == 0 {
		return "whole"
	}
	return strings.Join(parts, ", ")
}
