// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/weft-net/weft/internal/cni"
	"github.com/weft-net/weft/internal/datapath"
	"github.com/weft-net/weft/internal/rpc"
	"github.com/weft-net/weft/test/bench/load"
	"github.com/weft-net/weft/test/bench/sandbox"
)

// agent is weft-agent on a node.
type agent struct {
	*node
	program string
	dir     string // settings, sockets, directories of the CNI
	cmd     *exec.Cmd
}

func newAgent(n *node, o options) (*agent, error) {
	program, err := filepath.Abs(filepath.Join(o.bin, "weft-agent"))
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(program); err != nil {
		return nil, fmt.Errorf("%w: run make build", err)
	}
	a := &agent{node: n, program: program, dir: "/run/" + n.name}
	err = writeFiles(map[string]string{
		a.dir + "/config/k8s-api-server":   apiURL,
		a.dir + "/config/bpf-lb-sock":      "true",
		a.dir + "/config/enable-node-port": "true",
		a.dir + "/config/cgroup-root":      n.cgroup,
		a.dir + "/net.d/README":            "",
		a.dir + "/bin/README":              "",
	})
	if err != nil {
		return nil, err
	}
	if _, err := sandbox.Netns(n.name + "-health"); err != nil { // as `weft-agent init` does
		return nil, err
	}
	plugin, err := os.ReadFile(filepath.Join(o.bin, "weft-cni"))
	if err != nil {
		return nil, err
	}
	return a, os.WriteFile(a.dir+"/bin/weft-cni", plugin, 0o755)
}

// root is where a node's maps are pinned, if it is one of Weft's.
func (n *node) root() string { return filepath.Join(sandbox.BPFFS, n.name) }

// decided prints what a node's programs have decided on packets.
func (n *node) decided() error {
	if !strings.HasPrefix(n.name, "weft_") {
		return nil
	}
	m, err := datapath.OpenMaps(n.root())
	if err != nil {
		return err
	}
	rows, err := m.Metrics.List()
	for _, r := range rows {
		fmt.Printf("%-10s %-8s %-24s %10d packets\n", r.Hook, r.Class, r.Reason, r.Packets)
	}
	return errors.Join(err, m.Close())
}

func (a *agent) start() error {
	a.cmd = exec.Command(a.program, "--node-name", nodeName, "--config-dir", a.dir+"/config", "--run-dir", a.dir+"/run",
		"--bpf-root", a.root(), "--cni-conf-dir", a.dir+"/net.d", "--cni-bin-dir", a.dir+"/bin",
		"--health-netns", "/run/netns/"+a.name+"-health", "--credentials-dir", apiDir+"/credentials")
	attr, done, err := into(a.cgroup) // a pod of the host's network: it proves its own programs
	if err != nil {
		return err
	}
	defer done()
	a.cmd.SysProcAttr = attr
	return a.In(func() error { return daemon(a.name, a.cmd) })
}

func (a *agent) kill() error { return stop(a.cmd) }

// call speaks to the CNI socket as the plugin does.
func (a *agent) call(req cni.Request) (resp cni.Response, err error) {
	conn, err := net.Dial("unix", filepath.Join(a.dir, "run", filepath.Base(cni.SocketPath)))
	if err != nil {
		return resp, err
	}
	defer conn.Close()
	if err := errors.Join(cni.WriteMessage(conn, req), cni.ReadMessage(conn, &resp)); err != nil {
		return resp, err
	}
	if resp.Error != nil {
		return resp, resp.Error
	}
	return resp, nil
}

// serving returns once the agent would take an ADD.
func (a *agent) serving() error {
	err := eventually(fastTick, time.Minute, func() error { _, err := a.call(cni.Request{Command: "STATUS"}); return err })
	if err != nil {
		return fmt.Errorf("agent does not serve: %w; it said:\n%s", err, said(a.name))
	}
	return nil
}

// add attaches a pod and returns its address.
func (a *agent) add(s sandbox.Space, number int) (netip.Addr, error) {
	id := fmt.Sprintf("%064x", number)
	resp, err := a.call(cni.Request{
		Command: "ADD", ContainerID: id, Netns: s.Path, IfName: device,
		Args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=" + s.Name + ";K8S_POD_INFRA_CONTAINER_ID=" + id,
	})
	if err != nil {
		return netip.Addr{}, fmt.Errorf("ADD of %s: %w", s.Name, err)
	}
	return resp.Result.IPs[0], nil
}

// metrics returns the agent's, by name.
func (a *agent) metrics() (map[string]*dto.MetricFamily, error) {
	c := rpc.NewClient(filepath.Join(a.dir, "run", filepath.Base(rpc.SocketPath)))
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	b, err := c.Get(ctx, rpc.PathMetrics)
	if err != nil {
		return nil, err
	}
	p := expfmt.NewTextParser(model.UTF8Validation)
	return p.TextToMetricFamilies(bytes.NewReader(b))
}

// metric returns the one metric of a family whose labels hold all of want.
func metric(families map[string]*dto.MetricFamily, name string, want ...string) *dto.Metric {
	for _, m := range families[name].GetMetric() {
		has := map[string]bool{}
		for _, l := range m.GetLabel() {
			has[l.GetValue()] = true
		}
		all := true
		for _, w := range want {
			all = all && has[w]
		}
		if all {
			return m
		}
	}
	return nil
}

// programmed says what is missing until all Services are in the kernel. Beside
// those that were made there is the API server's own.
func (a *agent) programmed(objs *objects) error {
	f, err := a.metrics()
	if err != nil {
		return err
	}
	services := metric(f, "weft_services").GetGauge().GetValue()
	rows := metric(f, "weft_reconciler_objects", "frontends").GetGauge().GetValue()
	written := metric(f, "weft_reconciler_operations_total", "frontends", "update").GetCounter().GetValue()
	failing := metric(f, "weft_reconciler_failing_objects", "frontends").GetGauge().GetValue()
	compared := metric(f, "weft_reconciler_pruned_timestamp_seconds", "frontends").GetGauge().GetValue()
	if int(services) != objs.count+1 || rows < services || written < rows || failing > 0 || compared == 0 {
		return fmt.Errorf("%v of %d Services, %v rows, %v written, %v failing, compared at %v", services, objs.count+1, rows, written, failing, compared)
	}
	return nil
}

// pointed says which rows of the Services that are asked do not lead to the
// backend pod yet.
func (a *agent) pointed(objs *objects) error {
	m, err := datapath.OpenMaps(a.root())
	if err != nil {
		return err
	}
	defer m.Close()
	rows, err := m.Services.List()
	if err != nil {
		return err
	}
	right := 0
	for _, r := range rows {
		asked := r.Key.Addr == objs.target || r.Key.Addr.Port() == targetNodePort ||
			objs.change.IsValid() && (r.Key.Addr == objs.change || r.Key.Addr == objs.traffic || r.Key.Addr.Port() == trafficNodePort)
		if !asked {
			continue
		}
		right++
		for _, be := range r.Backends {
			if be.Addr.Addr() != a.podIP {
				return fmt.Errorf("%s has a backend %s, not at %s", r.Key, be.Addr, a.podIP)
			}
		}
	}
	if right < 2 {
		return fmt.Errorf("%d rows of %s", right, targetName)
	}
	return nil
}

// mapMemory is that of all maps of the node, in MiB.
func (a *agent) mapMemory() (float64, error) {
	m, err := datapath.OpenMaps(a.root())
	if err != nil {
		return 0, err
	}
	rows, err := m.Memory()
	if err != nil {
		return 0, errors.Join(err, m.Close())
	}
	sum := uint64(0)
	for _, r := range rows {
		sum += r.Bytes
	}
	return float64(sum) / (1 << 20), m.Close()
}

func (a *agent) rss() (float64, error) { return load.RSS(a.cmd.Process.Pid) }

// woven brings up a node of Weft's, and returns how long it took from the start of
// the agent, with nothing in the kernel, until all Services were there. With
// measure, if not nil, it is measured before the agent ends.
func woven(n *node, objs *objects, o options, measure func(*agent) error) (took time.Duration, err error) {
	a, err := newAgent(n, o)
	if err != nil {
		return 0, err
	}
	start := time.Now()
	if err := a.start(); err != nil {
		return 0, err
	}
	defer func() {
		if err = errors.Join(err, a.kill()); err != nil {
			err = fmt.Errorf("%w; the agent said:\n%s", err, said(a.name))
		}
	}()
	if err := eventually(slowTick, time.Minute, func() error { return a.programmed(objs) }); err != nil {
		return 0, err
	}
	took = time.Since(start)
	if err := a.serving(); err != nil {
		return 0, err
	}
	if _, err := a.add(n.client, 1); err != nil {
		return 0, err
	}
	if n.podIP, err = a.add(n.backend, 2); err != nil {
		return 0, err
	}
	if err := errors.Join(n.serve(), objs.point(n.podIP)); err != nil {
		return 0, err
	}
	if err := eventually(slowTick, time.Minute, func() error { return a.pointed(objs) }); err != nil {
		return 0, err
	}
	if err := n.answers(objs, time.Minute); err != nil {
		return 0, err
	}
	if measure != nil {
		return took, measure(a)
	}
	return took, nil
}
