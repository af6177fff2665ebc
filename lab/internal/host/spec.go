// SPDX-License-Identifier: Apache-2.0

// Package host makes one machine of a lab: a process tree in namespaces of its
// own under a PID 1 that supervises the host's programs. Killing that PID 1
// ends the host, and the kernel takes away all its mounts.
package host

import (
	"encoding/json"
	"fmt"
	"os"
)

// Spec is what PID 1 is told, as a file.
type Spec struct {
	Hostname string            `json:"hostname"`
	Dir      string            `json:"dir"`     // the host's own folder on the machine
	Cgroups  []CgroupSpec      `json:"cgroups"` // groups to join
	Binds    []Bind            `json:"binds"`
	Files    map[string]string `json:"files"` // files to write into the host, by absolute path
	Fakes    map[string]string `json:"fakes"` // files below /proc/sys to cover with a value
	Programs []Program         `json:"programs"`
}

// CgroupSpec is a group on the machine and where the host sees it.
type CgroupSpec struct {
	Dir     string `json:"dir"`     // the host's group, path on the machine
	Mount   string `json:"mount"`   // where the host mounts the hierarchy
	V2      bool   `json:"v2"`      //
	Options string `json:"options"` // v1: for mount(2)
	Pure    bool   `json:"pure"`    // cgroup2 with controllers: PID 1 must sit in a leaf
}

// Bind shows a folder of the machine inside the host.
type Bind struct {
	From     string `json:"from"`
	To       string `json:"to"`
	ReadOnly bool   `json:"readOnly"`
}

// Program is supervised: started in order, and again a second after it ended.
type Program struct {
	Name  string   `json:"name"`
	Argv  []string `json:"argv"`
	Env   []string `json:"env"`
	After string   `json:"after"` // a socket that must exist before the first start
}

func readSpec(path string) (*Spec, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("host spec: %w", err)
	}
	s := &Spec{}
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("host spec %s: %w", path, err)
	}
	return s, nil
}
