// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/weft-net/weft/lab/internal/host"
	"github.com/weft-net/weft/lab/internal/kube"
	"github.com/weft-net/weft/lab/internal/plan"
	"github.com/weft-net/weft/lab/internal/state"
	"github.com/weft-net/weft/lab/internal/wire"
)

// startNode brings a node's programs up and imports the images.
func (l *Lab) startNode(ctx context.Context, n plan.Host) error {
	if err := l.cluster.NodeCredentials(n); err != nil {
		return err
	}
	s, err := l.spec(n)
	if err != nil {
		return err
	}
	if s.Files, err = l.cluster.NodeFiles(n, restrictOOM()); err != nil {
		return err
	}
	dir := l.hostDir(n.Name)
	for from, to := range map[string]string{"cni.d": "/etc/cni/net.d", "cni-bin": "/opt/cni/bin"} {
		if err := os.MkdirAll(filepath.Join(dir, from), 0o755); err != nil {
			return fmt.Errorf("node %s: %w", n.Name, err)
		}
		s.Binds = append(s.Binds, host.Bind{From: filepath.Join(dir, from), To: to})
	}
	if err := copyFiles(l.cluster.Cache.Bin("debian", "cni"), filepath.Join(dir, "cni-bin")); err != nil {
		return fmt.Errorf("node %s: plugins: %w", n.Name, err)
	}
	// kubelet refuses to start unless these hold. They belong to the whole
	// machine, so it is shown the values instead.
	s.Fakes = map[string]string{"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1"}
	s.Programs = l.cluster.NodePrograms(n)
	if err := host.Start(s, l.netns(n.Name)); err != nil {
		return err
	}
	if err := l.importImages(ctx, n.Name, l.cluster.Cache.Images); err != nil {
		return err
	}
	l.report.line("node %s has its images", n.Name)
	return nil
}

func copyFiles(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(from, e.Name()))
		if err != nil {
			return err
		}
		if err := state.WriteFile(filepath.Join(to, e.Name()), b, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// importImages gives image archives to a node's containerd.
func (l *Lab) importImages(ctx context.Context, node string, files []string) error {
	log := filepath.Join(l.hostDir(node), "log", "containerd.log")
	ctr := l.cluster.Cache.Bin("containerd", "ctr")
	err := waitFor(ctx, containerdLimit, "containerd on "+node, log, func(ctx context.Context) (bool, string) {
		out, err := l.output(node, exec.CommandContext(ctx, ctr, "version"))
		return err == nil, out
	})
	if err != nil {
		return err
	}
	for _, file := range files {
		if err := l.importImage(ctx, node, ctr, file); err != nil {
			return fmt.Errorf("node %s: import %s: %w", node, file, err)
		}
	}
	return nil
}

func (l *Lab) importImage(ctx context.Context, node, ctr, file string) error {
	ctx, cancel := context.WithTimeout(ctx, importLimit)
	defer cancel()
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	cmd := exec.CommandContext(ctx, ctr, "-n", "k8s.io", "images", "import", "--local", "-")
	cmd.Stdin = f
	if out, err := l.output(node, cmd); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// output runs a command in a host and returns what it said, for an error.
func (l *Lab) output(hostName string, cmd *exec.Cmd) (string, error) {
	var b strings.Builder
	cmd.Stdout, cmd.Stderr = &b, &b
	err := l.inHost(hostName, cmd)
	if err != nil && b.Len() == 0 {
		b.WriteString(err.Error())
	}
	return strings.TrimSpace(b.String()), err
}

// joinNodes waits until nodes are registered with their pod ranges, lays the
// routes, and with the stand-in network waits until they are ready.
func (l *Lab) joinNodes(ctx context.Context, nodes []plan.Host) error {
	client, err := l.cluster.NewClient(l.netns(l.cluster.Control.Name))
	if err != nil {
		return err
	}
	for _, n := range nodes {
		log := filepath.Join(l.hostDir(n.Name), "log", "kubelet.log")
		err := waitFor(ctx, registerLimit, "node "+n.Name, log, func(ctx context.Context) (bool, string) {
			all, err := client.Nodes(ctx)
			if err != nil {
				return false, err.Error()
			}
			k, ok := all[n.Name]
			if !ok {
				return false, "kubelet has not registered it" + l.trouble(n.Name)
			}
			return len(k.Spec.PodCIDRs) == 2 || l.rec.Options.NoNodeCIDRs, fmt.Sprintf("registered with pod ranges %v, want one of each family", k.Spec.PodCIDRs)
		})
		if err != nil {
			return err
		}
	}
	l.report.line("nodes are registered")
	if err := l.layRoutes(ctx, client); err != nil {
		return err
	}
	if l.rec.Options.CNI != plan.CNIPtp {
		return nil
	}
	for _, n := range nodes {
		if err := l.configurePtp(ctx, client, n); err != nil {
			return err
		}
	}
	l.report.line("nodes are ready")
	return nil
}

// trouble tells of programs of a host that do not stay up.
func (l *Lab) trouble(hostName string) string {
	var b strings.Builder
	for _, p := range programs(l.hostDir(hostName)) {
		if p.Starts > 2 {
			fmt.Fprintf(&b, "; %s was started %d times, the last ended with %s", p.Name, p.Starts, p.LastExit)
		}
	}
	return b.String()
}

func (l *Lab) configurePtp(ctx context.Context, client *kube.Client, n plan.Host) error {
	all, err := client.Nodes(ctx)
	if err != nil {
		return err
	}
	conf, err := kube.PtpConflist(all[n.Name].Spec.PodCIDRs)
	if err != nil {
		return err
	}
	dir := l.hostDir(n.Name)
	if err := state.WriteFile(filepath.Join(dir, "cni.d", "10-ptp.conflist"), []byte(conf), 0o644); err != nil {
		return err
	}
	return waitFor(ctx, readyLimit, "node "+n.Name, filepath.Join(dir, "log", "kubelet.log"), func(ctx context.Context) (bool, string) {
		all, err := client.Nodes(ctx)
		if err != nil {
			return false, err.Error()
		}
		return all[n.Name].Ready()
	})
}

// layRoutes makes pod ranges reachable as far as the options say: the router
// knows each node's ranges, and nodes send all pod addresses to the router.
// With the stand-in network, nodes of one subnet know each other's ranges too.
func (l *Lab) layRoutes(ctx context.Context, client *kube.Client) error {
	all, err := client.Nodes(ctx)
	if err != nil {
		return err
	}
	ranges := map[string][]netip.Prefix{}
	for name, n := range all {
		for _, c := range n.Spec.PodCIDRs {
			p, err := netip.ParsePrefix(c)
			if err != nil {
				return fmt.Errorf("node %s: pod range: %w", name, err)
			}
			ranges[name] = append(ranges[name], p)
		}
	}
	for where, routes := range podRoutes(l.rec.Options, l.rec.Nodes(), ranges) {
		if where == router {
			l.setRouteMTUs(routes)
		}
		if err := wire.SetRoutes(l.netns(where), routes); err != nil {
			return fmt.Errorf("%s: %w", where, err)
		}
	}
	return nil
}

// setRouteMTUs tells the router of links that carry less than its bridges.
func (l *Lab) setRouteMTUs(routes []wire.Route) {
	for i, r := range routes {
		for _, n := range l.rec.Nodes() {
			if r.Via == n.Addr4() || r.Via == n.Addr6() {
				routes[i].MTU = l.rec.Links[n.Ports[0].Peer].MTU
			}
		}
	}
}

// dropRoutes takes away the routes to the ranges of a node that is gone.
func (l *Lab) dropRoutes(gone plan.Host, cidrs []string) error {
	var ranges []netip.Prefix
	for _, c := range cidrs {
		p, err := netip.ParsePrefix(c)
		if err != nil {
			return fmt.Errorf("node %s: pod range: %w", gone.Name, err)
		}
		ranges = append(ranges, p)
	}
	nodes := append(l.rec.Nodes(), gone)
	for where, routes := range podRoutes(l.rec.Options, nodes, map[string][]netip.Prefix{gone.Name: ranges}) {
		if where == gone.Name {
			continue
		}
		var drop []wire.Route
		for _, r := range routes {
			if r.Via == gone.Addr4() || r.Via == gone.Addr6() {
				drop = append(drop, r)
			}
		}
		if err := wire.DeleteRoutes(l.netns(where), drop); err != nil {
			return fmt.Errorf("%s: %w", where, err)
		}
	}
	return nil
}

// podRoutes computes the routes to pods: host, or the router, to its routes.
func podRoutes(o plan.Options, nodes []plan.Host, ranges map[string][]netip.Prefix) map[string][]wire.Route {
	routes := map[string][]wire.Route{}
	add := func(where string, dst netip.Prefix, via4, via6 netip.Addr) {
		via := via4
		if dst.Addr().Is6() {
			via = via6
		}
		routes[where] = append(routes[where], wire.Route{Dst: dst, Via: via})
	}
	for _, n := range nodes {
		if o.RoutePods && !o.NoNodeCIDRs {
			for _, r := range ranges[n.Name] {
				add(router, r, n.Addr4(), n.Addr6())
			}
			s, err := o.Subnet(n.Ports[0].Subnet)
			if err != nil {
				continue
			}
			add(n.Name, netip.MustParsePrefix(plan.PodCIDR4), s.GW4, s.GW6)
			add(n.Name, netip.MustParsePrefix(plan.PodCIDR6), s.GW4, s.GW6)
		}
		if o.CNI != plan.CNIPtp {
			continue
		}
		for _, peer := range nodes {
			if peer.Name == n.Name || peer.Ports[0].Subnet != n.Ports[0].Subnet {
				continue
			}
			for _, r := range ranges[peer.Name] {
				add(n.Name, r, peer.Addr4(), peer.Addr6())
			}
		}
	}
	return routes
}

// LoadImages imports archives into all nodes.
func LoadImages(ctx context.Context, name string, files []string, out io.Writer) error {
	for _, f := range files {
		if _, err := os.Stat(f); err != nil {
			return fmt.Errorf("image archive: %w", err)
		}
	}
	return change(ctx, name, out, func(l *Lab) error {
		results := make(chan error)
		nodes := l.rec.Nodes()
		for _, n := range nodes {
			go func() { results <- l.importImages(ctx, n.Name, files) }()
		}
		var err error
		for range nodes {
			err = errors.Join(err, <-results)
		}
		return err
	})
}
