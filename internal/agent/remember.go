// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"github.com/weft-net/weft/internal/config"
	"github.com/weft-net/weft/internal/table"
)

// memory is what the agent must know of its node to serve ADDs before, or
// without, the API server. It lies on tmpfs beside the endpoints' state file and
// tells the boot that it is about, for the case that the directory outlives one.
type memory struct {
	BootID   string         `json:"bootID"`
	Node     string         `json:"node"`
	UID      string         `json:"uid"`
	Addrs    []netip.Addr   `json:"addrs"`
	IPAM     string         `json:"ipam"` // the mode that PodCIDRs come from; older agents knew kubernetes only
	PodCIDRs []netip.Prefix `json:"podCIDRs"`
	Pools    []string       `json:"pools,omitempty"` // of each of PodCIDRs, in mode multi-pool
	ProvenAt time.Time      `json:"provenAt"`        // zero: not proven in this boot
}

// memoryFile reads and writes a memory.
type memoryFile struct {
	path   string
	bootID string
	node   string
	ipam   string
}

// load returns what is remembered of this boot and node, or an empty memory. An
// unreadable file is as good as none, and an error says so.
func (f memoryFile) load() (memory, error) {
	empty := memory{BootID: f.bootID, Node: f.node, IPAM: f.ipam}
	b, err := os.ReadFile(f.path)
	if errors.Is(err, os.ErrNotExist) {
		return empty, nil
	}
	if err != nil {
		return empty, fmt.Errorf("node state %s: %w", f.path, err)
	}
	var m memory
	if err := json.Unmarshal(b, &m); err != nil {
		return empty, fmt.Errorf("node state %s: %w: it is ignored and written anew", f.path, err)
	}
	if m.BootID != f.bootID || m.Node != f.node {
		return empty, nil
	}
	if cmp.Or(m.IPAM, config.IPAMKubernetes) != cmp.Or(f.ipam, config.IPAMKubernetes) {
		m.IPAM, m.PodCIDRs, m.Pools = f.ipam, nil, nil // of another authority
	}
	return m, nil
}

func (f memoryFile) save(m memory) error {
	m.BootID, m.Node, m.IPAM = f.bootID, f.node, f.ipam
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return fmt.Errorf("node state %s: %w", f.path, err)
	}
	if err := renameio.WriteFile(f.path, append(b, '\n'), 0o600, renameio.WithTempDir(filepath.Dir(f.path))); err != nil {
		return fmt.Errorf("node state %s: %w: free space on its file system", f.path, err)
	}
	return nil
}

// bootID returns the kernel's id of this boot (random(4)).
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// row makes a node's row of a memory, for use before the API server has spoken.
func (m memory) row() *table.Node {
	return &table.Node{Name: m.Node, Local: true, UID: m.UID, Addrs: m.Addrs, PodCIDRs: m.PodCIDRs}
}
