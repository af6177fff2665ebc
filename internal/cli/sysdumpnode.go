// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"time"

	"github.com/weft-net/weft/internal/datapath"
	"github.com/weft-net/weft/internal/rpc"
)

// commandLimit bounds one command of a sysdump.
const commandLimit = 10 * time.Second

// nodeCommands are what a node's sysdump runs. All of them only read.
var nodeCommands = map[string][]string{
	"ip/addr":       {"ip", "-d", "addr"},
	"ip/link":       {"ip", "-d", "-s", "link"},
	"ip/route4":     {"ip", "-4", "route", "show", "table", "all"},
	"ip/route6":     {"ip", "-6", "route", "show", "table", "all"},
	"ip/rule4":      {"ip", "-4", "rule"},
	"ip/rule6":      {"ip", "-6", "rule"},
	"ip/neigh":      {"ip", "neigh"},
	"ip/netns":      {"ip", "netns", "list"},
	"iptables/v4":   {"iptables-save", "-c"},
	"iptables/v6":   {"ip6tables-save", "-c"},
	"nft/ruleset":   {"nft", "list", "ruleset"},
	"bpf/net":       {"bpftool", "net"},
	"bpf/programs":  {"bpftool", "prog", "show"},
	"system/uname":  {"uname", "-a"},
	"system/memory": {"cat", "/proc/meminfo"},
}

// collectNode gathers what this node knows: through the agent where one
// answers, from pins and the kernel in any case.
func (a *app) collectNode(ctx context.Context, ar *archive) error {
	c := rpc.NewClient(a.paths.socket)
	defer c.Close()
	noAgent := false
	for name, at := range map[string]string{
		"status.json": rpc.PathStatus, "endpoints.json": rpc.PathEndpoints, "nodes.json": rpc.PathNodes,
		"ipcache.json": rpc.PathIPCache, "routes.json": rpc.PathRoutes, "devices.json": rpc.PathDevices, "services.json": rpc.PathServices,
		"bpf-endpoint.json": rpc.PathBPFEndpoint, "bpf-ipcache.json": rpc.PathBPFIPCache,
		"bpf-ct.json": rpc.PathBPFCT, "bpf-lb.json": rpc.PathBPFLB, "bpf-lb-sockets.json": rpc.PathBPFLBSockets,
		"bpf-lb-connections.json": rpc.PathBPFLBConns, "bpf-nat.json": rpc.PathBPFNAT, "bpf-metrics.json": rpc.PathBPFMetrics, "config.json": rpc.PathConfig,
	} {
		b, err := c.Get(ctx, at)
		noAgent = noAgent || errors.Is(err, rpc.ErrNoAgent)
		ar.add("agent/"+name, redactJSON(b), err)
	}
	b, err := c.Get(ctx, rpc.PathMetrics)
	ar.add("agent/metrics.txt", b, err)
	if noAgent {
		a.collectPins(ar)
	}
	for _, name := range sortedKeys(nodeCommands) {
		out, err := runCommand(ctx, nodeCommands[name])
		ar.add(name+".txt", []byte(redactText(string(out))), err)
	}
	a.collectFiles(ar)
	return nil
}

// collectPins reads the maps and the state file that the last agent left.
func (a *app) collectPins(ar *archive) {
	s, err := datapath.OpenMaps(a.paths.pins)
	if err != nil {
		ar.add("pins", nil, err)
		return
	}
	defer s.Close()
	for name, read := range map[string]func() (any, error){
		"endpoint": func() (any, error) { return s.Endpoints.List() },
		"ipcache":  func() (any, error) { return s.IPCache.List() },
		"ct":       func() (any, error) { return s.CT.List(0) },
		"nat":      func() (any, error) { return s.NAT.List(0) },
		"lb":       func() (any, error) { return s.Services.LB() },
		"lb-conns": func() (any, error) { return s.LBConns.List(0) },
		"metrics":  func() (any, error) { return s.Metrics.List() },
		"maps":     func() (any, error) { return s.Fill() },
	} {
		rows, err := read()
		b, merr := json.Marshal(rows)
		ar.add("pins/"+name+".json", b, errors.Join(err, merr))
	}
	b, err := os.ReadFile(a.paths.endpoints)
	ar.add("state/endpoints.json", b, err)
}

// collectFiles takes the CNI configuration. Other networks' files may hold
// credentials: they are redacted like everything else.
func (a *app) collectFiles(ar *archive) {
	entries, err := os.ReadDir(a.paths.cniConf)
	if err != nil {
		ar.add("cni/", nil, err)
		return
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		b, err := os.ReadFile(filepath.Join(a.paths.cniConf, e.Name()))
		if path.Ext(e.Name()) == ".kubeconfig" {
			b, err = nil, errors.New("left out: it holds credentials")
		} else if json.Valid(b) {
			b = redactJSON(b)
		} else {
			b = []byte(redactText(string(b)))
		}
		ar.add("cni/"+e.Name(), b, err)
	}
}

func runCommand(ctx context.Context, argv []string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...) //nolint:gosec // from a fixed list
	cmd.WaitDelay = time.Second
	out := &headBuffer{limit: maxItem + 1}
	errOut := &headBuffer{limit: 4096}
	cmd.Stdout, cmd.Stderr = out, errOut
	err := cmd.Run()
	switch msg := lastLine(errOut.String()); {
	case ctx.Err() != nil:
		err = fmt.Errorf("%s: did not end within %s", argv[0], commandLimit)
	case err != nil && msg != "":
		err = fmt.Errorf("%s: %w: %s", argv[0], err, msg)
	}
	return out.Bytes(), err
}

// headBuffer keeps the first limit bytes and swallows the rest.
type headBuffer struct {
	bytes.Buffer
	limit int
}

func (b *headBuffer) Write(p []byte) (int, error) {
	if room := b.limit - b.Len(); room > 0 {
		_, _ = b.Buffer.Write(p[:min(room, len(p))]) // never fails
	}
	return len(p), nil
}
