// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"github.com/weft-net/weft/internal/cni"
	"github.com/weft-net/weft/internal/health"
	"github.com/weft-net/weft/internal/k8s"
)

// portMapAnswer bounds how long the portmap plugin may take to tell its versions.
const portMapAnswer = 2 * time.Second

// newHealth makes the gate and the prober of peers.
func (a *Agent) newHealth() {
	// Peers are probed from the health endpoint: the answer proves the path that
	// pods take, both ways.
	echo := health.Pinger{Netns: a.opts.Paths.HealthNetns}
	var addrs []netip.Addr
	if a.fam.v4 {
		addrs = append(addrs, health.ProofIPv4)
	}
	if a.fam.v6 {
		addrs = append(addrs, health.ProofIPv6)
	}
	a.gate = &health.Gate{
		Proof: health.Proof{Endpoints: a.endpoints, Namespaces: namespaces{}, Echo: health.Pinger{}, Addrs: addrs},
		Peers: a.listPeers, Echo: echo, Open: a.open, Log: a.log,
		FailingSince: func() time.Time { return a.cni.AddFailingSince() },
		Report: func(ready bool, reason string) {
			if ready {
				a.report(k8s.EventNormal, "NetworkReady", reason)
			} else {
				a.report(k8s.EventWarning, "NetworkNotReady", reason)
			}
		},
	}
	a.gate.Wait("waiting for the API server's word on this node")
	a.peers = &health.Peers{List: a.listPeers, Echo: echo}
}

func (a *Agent) listPeers() []health.Peer {
	var out []health.Peer
	for n := range a.t.nodes.All(a.t.db.ReadTxn()) {
		if n.Local {
			continue
		}
		p := health.Peer{Name: n.Name, Ready: n.Ready}
		for _, ip := range n.HealthIPs {
			if a.fam.has(ip) {
				p.Addrs = append(p.Addrs, ip)
			}
		}
		out = append(out, p)
	}
	return out
}

// restoreProof takes the node for proven if it was so earlier in this boot, the
// CNI configuration is there and the kernel is as this agent wants it.
func (a *Agent) restoreProof(ctx context.Context) {
	if a.mem.ProvenAt.IsZero() {
		return
	}
	if _, err := os.Stat(a.opts.Paths.conflist()); err != nil {
		a.log.Warn("node was proven but its CNI configuration is gone, proving it again", "file", a.opts.Paths.conflist())
		return
	}
	if problems := a.dp.Verify(ctx); len(problems) > 0 {
		a.log.Warn("node was proven but its datapath is not as it should be, proving it again", "problems", fmt.Sprint(problems))
		return
	}
	if err := a.writeConflist(); err != nil {
		a.log.Warn("CNI configuration is kept as it is", "error", err)
	}
	a.gate.Restored(a.mem.ProvenAt)
	a.openOnce.Do(func() { close(a.openGate) })
}

// runGate proves the node once all is there that a proof needs.
func (a *Agent) runGate(ctx context.Context) error {
	if _, proven := a.gate.Proven(); !proven && !a.awaitProof(ctx) {
		return nil
	}
	return a.gate.Run(ctx)
}

// awaitProof waits until the node's addresses and ranges are in effect, the
// first full lists have come, no running Cilium was found and packets of pods
// are accepted in FORWARD. It returns false if ctx ended first.
func (a *Agent) awaitProof(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-a.begin:
	}
	a.gate.Wait("waiting for the first full lists of the API server")
	if ok, ch := a.t.ipcache.Initialized(a.t.db.ReadTxn()); !ok {
		select {
		case <-ctx.Done():
			return false
		case <-ch:
		}
	}
	// A row that cannot be written must not hold the node back for ever: the
	// proof and the round trip judge what matters.
	settle := time.After(cniStart)
	for _, synced := range []<-chan struct{}{a.ipcacheLoop.Synced(), a.routesLoop.Synced()} {
		select {
		case <-ctx.Done():
			return false
		case <-synced:
		case <-settle:
		}
	}
	for _, need := range []struct {
		what string
		ch   <-chan struct{}
	}{
		{"waiting for the API server's word on whether Cilium runs in this cluster", a.cleared},
		{"waiting for the accept rules in FORWARD (`weft status`, Datapath)", a.accepted},
	} {
		a.gate.Wait(need.what)
		select {
		case <-ctx.Done():
			return false
		case <-need.ch:
		}
	}
	return true
}

// open lets pods onto the node: the runtime finds the configuration, and the
// taint goes.
func (a *Agent) open(context.Context) error {
	if _, err := os.Stat(a.opts.Paths.plugin()); err != nil {
		return fmt.Errorf("CNI plugin: %w: `weft-agent init` installs it, the DaemonSet's first container", err)
	}
	if err := a.writeConflist(); err != nil {
		return err
	}
	if err := a.keep(func(m *memory) { m.ProvenAt = time.Now().UTC().Truncate(time.Second) }); err != nil {
		return err
	}
	a.openOnce.Do(func() { close(a.openGate) })
	return nil
}

// writeConflist writes the CNI configuration unless it stands there as it should.
func (a *Agent) writeConflist() error {
	want, err := cni.Conflist(portMapVersions(a.opts.Paths.portMap(), a.log))
	if err != nil {
		return err
	}
	path := a.opts.Paths.conflist()
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, want) {
		return nil
	}
	// The runtime takes files by their ending: the temporary one has none of those.
	if err := renameio.WriteFile(path, want, 0o644, renameio.WithTempDir(filepath.Dir(path))); err != nil {
		return fmt.Errorf("CNI configuration %s: %w: free space, or fix the mount of %s", path, err, filepath.Dir(path))
	}
	a.log.Info("CNI configuration is written", "file", path)
	return nil
}

// portMapVersions asks the portmap plugin which CNI versions it speaks: none if
// it is not installed. One that cannot be asked is taken for an old one.
func portMapVersions(path string, log *slog.Logger) []string {
	if _, err := os.Stat(path); err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), portMapAnswer)
	defer cancel()
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = []string{"CNI_COMMAND=VERSION"}
	cmd.Stdin = strings.NewReader(`{"cniVersion":"1.0.0"}`)
	var answer struct {
		SupportedVersions []string `json:"supportedVersions"`
	}
	out, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(out, &answer)
	}
	if err != nil || len(answer.SupportedVersions) == 0 {
		log.Warn("portmap plugin does not tell its versions, taken for one from before CNI 1.1", "file", path, "error", err)
		return []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0"}
	}
	return answer.SupportedVersions
}

// ready answers the kubelet's readiness probe: the CNI is served and the node is
// proven.
func (a *Agent) ready() error {
	if _, ok := a.gate.Proven(); !ok {
		return errors.New(a.gate.Component().Message)
	}
	return nil
}

// report hands an event to the sender. When too many wait, it is dropped: the
// log has it, and the status.
func (a *Agent) report(kind k8s.EventType, reason, message string) {
	select {
	case a.reports <- report{kind, reason, message}:
	default:
	}
}

// sendReports writes events to the API server until ctx ends.
func (a *Agent) sendReports(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case r := <-a.reports:
			for delay := retryShort; delay < time.Minute; delay *= 4 {
				err := a.client.Event(ctx, r.kind, r.reason, r.message)
				if err == nil {
					break
				}
				a.log.Debug("event cannot be written", "reason", r.reason, "error", err)
				select {
				case <-ctx.Done():
					return nil
				case <-time.After(delay):
				}
			}
		}
	}
}
