// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/cni"
	"github.com/weft-net/weft/internal/datapath"
	"github.com/weft-net/weft/internal/k8s"
	"github.com/weft-net/weft/internal/rpc"
)

// Options of a run of the agent.
type Options struct {
	NodeName string
	Version  string
	Paths    Paths
	Log      *slog.Logger
	Level    *slog.LevelVar // raised by the setting "debug"; may be nil
}

// Paths are the places that the agent touches on a node.
type Paths struct {
	Config      string // directory of settings
	Run         string // sockets, state files
	BPF         string // pins
	CNIConf     string
	CNIBin      string
	HealthNetns string
	Credentials string // of the service account
	Sysctl      string // /proc/sys/net of the node; empty: found by package link
	MasqAgent   string // ip-masq-agent's file
}

// DefaultPaths are those of a node.
func DefaultPaths() Paths {
	return Paths{
		Config:      "/etc/weft/config",
		Run:         filepath.Dir(rpc.SocketPath),
		BPF:         datapath.DefaultRoot,
		CNIConf:     "/etc/cni/net.d",
		CNIBin:      "/opt/cni/bin",
		HealthNetns: "/run/netns/weft-health",
		Credentials: k8s.CredentialsDir,
		MasqAgent:   "/etc/config/ip-masq-agent",
	}
}

func (p Paths) socket() string      { return filepath.Join(p.Run, filepath.Base(rpc.SocketPath)) }
func (p Paths) cniSocket() string   { return filepath.Join(p.Run, filepath.Base(cni.SocketPath)) }
func (p Paths) queue() string       { return filepath.Join(p.Run, filepath.Base(cni.QueueDir)) }
func (p Paths) unreachable() string { return filepath.Join(p.Run, filepath.Base(cni.UnreachableFile)) }
func (p Paths) endpoints() string   { return filepath.Join(p.Run, "endpoints.json") }
func (p Paths) node() string        { return filepath.Join(p.Run, "node.json") }
func (p Paths) reserved() string    { return filepath.Join(p.Run, "reserved-ports") }
func (p Paths) bounds() string      { return filepath.Join(p.Run, "super-packets.json") }
func (p Paths) lock() string        { return filepath.Join(p.Run, "agent.lock") }
func (p Paths) conflist() string    { return filepath.Join(p.CNIConf, cni.ConflistName) }
func (p Paths) plugin() string      { return filepath.Join(p.CNIBin, cni.PluginType) }
func (p Paths) portMap() string     { return filepath.Join(p.CNIBin, "portmap") }

// lockRun makes sure that one agent works on a node at a time. The lock goes
// with the process.
func lockRun(p Paths) (*os.File, error) {
	if err := os.MkdirAll(p.Run, 0o755); err != nil {
		return nil, fmt.Errorf("run directory %s: %w", p.Run, err)
	}
	f, err := os.OpenFile(p.lock(), os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", p.lock(), err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: another weft-agent runs on this node: it must end first", p.lock())
		}
		return nil, fmt.Errorf("lock %s: %w", p.lock(), err)
	}
	return f, nil
}
