// SPDX-License-Identifier: Apache-2.0

package connectivity

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
)

// API is what a test needs of the API server.
type API interface {
	Get(ctx context.Context, path string, out any) error
	Do(ctx context.Context, method, path string, in, out any) error
	// Exec runs the command in the pod's probe container until it ends.
	Exec(ctx context.Context, pod string, command []string, in io.Reader, out, errOut io.Writer) error
	// Gone says whether err is "there is no such object".
	Gone(err error) bool
}

// Options of a test.
type Options struct {
	Image       string // of the agents, which holds the probe
	Nodes       []string
	Filter      Filter
	Port        uint16
	CellTimeout time.Duration
	Retries     int
	Timeout     time.Duration // of the whole test, without the clean-up
	System      string        // namespace that Weft is installed in
	Outside     OutsideOptions
	Keep        bool // leave namespace and pods for a look
	Reuse       bool // use the pods that a run with Keep left, and leave them; Image, Nodes and Port do not matter
}

// Timing of a run.
const (
	startLimit   = 45 * time.Second // for the probes to run
	pollEvery    = 300 * time.Millisecond
	cleanLimit   = 45 * time.Second
	waitServices = 10 * time.Second
	staleAfter   = 15 * time.Minute // a namespace left by a run that was killed
	concurrency  = 24               // cells at a time on each probe
	parallelExec = 32
)

type runner struct {
	api   API
	opts  Options
	id    string
	token Token
	say   Progress
	topo  Topology
}

// Progress is told what happens, for a human to watch.
type Progress interface {
	Stage(msg string)
	Cells(done, failed, all int)
}

// Run tests the cluster from pods that it makes and removes again, whatever
// happens. It returns an error where no verdict could be reached; failed cells
// stand in the report.
func Run(ctx context.Context, api API, opts Options, say Progress) (rep *Report, err error) {
	var id [4]byte
	_, _ = rand.Read(id[:]) // never fails
	r := &runner{api: api, opts: opts, id: hex.EncodeToString(id[:]), token: NewToken(), say: say}
	if opts.Outside.Token != nil {
		r.token = *opts.Outside.Token
	}
	start := time.Now()
	if !opts.Reuse {
		if err := r.claim(ctx); err != nil {
			return nil, err
		}
	}
	defer func() {
		if opts.Reuse {
			return
		}
		if opts.Keep {
			say.Stage(fmt.Sprintf("kept: namespace %s; remove it with `kubectl delete namespace %s`", Namespace, Namespace))
			return
		}
		// The caller's context may have ended (^C): cleaning up goes on.
		cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanLimit)
		defer cancel()
		if cerr := r.remove(cctx); cerr != nil && err == nil {
			say.Stage("clean-up: " + cerr.Error())
		}
	}()
	limit := opts.Timeout
	tctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the test's --timeout of %s is over", limit))
	defer cancel()
	cells, results, err := r.test(tctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil, errors.New("interrupted")
		}
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, errors.New("interrupted")
	}
	rep = NewReport(r.id, "cluster", cells, results, time.Since(start))
	rep.Network = &r.topo.Network
	return rep, nil
}

// claim makes the namespace. A run of another one is left alone; the rest of
// one that was killed is removed first.
func (r *runner) claim(ctx context.Context) error {
	const path = "/api/v1/namespaces/" + Namespace
	var old corev1.Namespace
	err := r.api.Get(ctx, path, &old)
	switch {
	case r.api.Gone(err):
	case err != nil:
		return err
	case old.Labels[labelPartOf] != partOf:
		return fmt.Errorf("namespace %s exists and is not the test's: it has to go first", Namespace)
	case old.DeletionTimestamp == nil && time.Since(old.CreationTimestamp.Time) < staleAfter:
		return fmt.Errorf("namespace %s exists: another test runs, or one was run with --keep; wait, or `kubectl delete namespace %s`", Namespace, Namespace)
	default:
		r.say.Stage("removing what an earlier run left")
		if err := r.remove(ctx); err != nil {
			return err
		}
	}
	return r.api.Do(ctx, http.MethodPost, "/api/v1/namespaces", r.namespace(), nil)
}

// remove deletes the namespace and waits until it has gone.
func (r *runner) remove(ctx context.Context) error {
	const path = "/api/v1/namespaces/" + Namespace
	if err := r.api.Do(ctx, http.MethodDelete, path, nil, nil); err != nil && !r.api.Gone(err) {
		return fmt.Errorf("namespace %s: %w; remove it with `kubectl delete namespace %s`", Namespace, err, Namespace)
	}
	err := poll(ctx, func() (bool, error) {
		err := r.api.Get(ctx, path, new(corev1.Namespace))
		if r.api.Gone(err) {
			return true, nil
		}
		return false, err
	})
	if err != nil {
		return fmt.Errorf("namespace %s does not go: %w", Namespace, err)
	}
	return nil
}

// poll calls f until it says so, fails or the context ends.
func poll(ctx context.Context, f func() (bool, error)) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		if done, err := f(); done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// test starts the probes, makes the plan and runs it.
func (r *runner) test(ctx context.Context) ([]Cell, map[int]Result, error) {
	prepare := r.start
	if r.opts.Reuse {
		prepare = r.adopt
	}
	if err := prepare(ctx); err != nil {
		return nil, nil, err
	}
	if ctx.Err() != nil {
		return nil, nil, context.Cause(ctx)
	}
	cells := Plan(r.topo, r.opts.Filter)
	judge, err := r.answerOutside(ctx, cells)
	if err != nil {
		return nil, nil, err
	}
	toRun := 0
	for i := range cells {
		if cells[i].Runs() {
			toRun++
		}
	}
	r.say.Stage(fmt.Sprintf("running %d cells on %d nodes", toRun, len(r.topo.Nodes)))
	results := r.runCells(ctx, cells, toRun)
	return cells, results, judge(results)
}

// start creates all objects and fills in the topology.
func (r *runner) start(ctx context.Context) error {
	if err := r.readCluster(ctx); err != nil {
		return err
	}
	r.say.Stage(fmt.Sprintf("starting probes on %d nodes", len(r.topo.Nodes)))
	create := func(path string, obj, out any) error {
		return r.api.Do(ctx, http.MethodPost, path, obj, out)
	}
	const sets = "/apis/apps/v1/namespaces/" + Namespace + "/daemonsets"
	for _, d := range []struct {
		role string
		host bool
	}{{roleA, false}, {roleB, false}, {roleHost, true}} {
		if err := create(sets, r.daemonSet(d.role, d.host), nil); err != nil {
			return fmt.Errorf("daemonset %s: %w", d.role, err)
		}
	}
	for i := range r.topo.Nodes {
		var svc corev1.Service
		if err := create("/api/v1/namespaces/"+Namespace+"/services", r.service(i), &svc); err != nil {
			return fmt.Errorf("service %s: %w", hairpinName(i), err)
		}
		r.topo.Nodes[i].Hairpin = Service{Name: hairpinName(i), Addrs: parseAddrs(svc.Spec.ClusterIPs), Port: r.opts.Port}
	}
	if err := r.waitProbes(ctx); err != nil {
		return err
	}
	for i := range r.topo.Nodes {
		n := &r.topo.Nodes[i]
		for _, addr := range n.A.Addrs {
			err := create("/apis/discovery.k8s.io/v1/namespaces/"+Namespace+"/endpointslices", r.slice(n.Hairpin.Name, n.A, n.Name, addr), nil)
			if err != nil {
				return fmt.Errorf("endpointslice of %s: %w", n.Hairpin.Name, err)
			}
		}
	}
	return r.waitListening(ctx)
}

// readCluster reads the nodes, and where API server and DNS are.
func (r *runner) readCluster(ctx context.Context) error {
	var nodes corev1.NodeList
	if err := r.api.Get(ctx, "/api/v1/nodes", &nodes); err != nil {
		return err
	}
	for i := range nodes.Items {
		n := &nodes.Items[i]
		if len(r.opts.Nodes) > 0 && !slices.Contains(r.opts.Nodes, n.Name) {
			continue
		}
		r.topo.Nodes = append(r.topo.Nodes, nodeOf(n))
	}
	if len(r.topo.Nodes) == 0 {
		return errors.New("no node to test; `kubectl get nodes` lists them")
	}
	slices.SortFunc(r.topo.Nodes, func(a, b Node) int { return strings.Compare(a.Name, b.Name) })
	r.topo.Port = r.opts.Port
	if err := r.readNetwork(ctx); err != nil {
		return err
	}
	if err := r.findOutside(ctx); err != nil {
		return err
	}
	var err error
	if r.topo.APIServer, err = r.find(ctx, "default", "kubernetes", "https"); err != nil {
		return err
	}
	r.topo.DNS, err = r.find(ctx, "kube-system", "kube-dns", "dns")
	return err
}

func nodeOf(n *corev1.Node) Node {
	out := Node{Name: n.Name}
	for _, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			out.Addrs = append(out.Addrs, parseAddrs([]string{a.Address})...)
		}
		out.All = append(out.All, parseAddrs([]string{a.Address})...)
	}
	for _, c := range n.Spec.PodCIDRs {
		if p, err := netip.ParsePrefix(c); err == nil {
			out.Ranges = append(out.Ranges, p)
		}
	}
	return out
}

// find looks a Service up. One that is absent is a reason to skip.
func (r *runner) find(ctx context.Context, namespace, name, port string) (Service, error) {
	out := Service{Name: name}
	var svc corev1.Service
	err := r.api.Get(ctx, "/api/v1/namespaces/"+namespace+"/services/"+name, &svc)
	if r.api.Gone(err) {
		out.Why = fmt.Sprintf("there is no Service %s/%s", namespace, name)
		return out, nil
	}
	if err != nil {
		return out, err
	}
	out.Addrs = parseAddrs(svc.Spec.ClusterIPs)
	for _, p := range svc.Spec.Ports {
		if p.Name == port || out.Port == 0 {
			out.Port = uint16(p.Port)
		}
	}
	return out, nil
}

func parseAddrs(ss []string) []netip.Addr {
	var out []netip.Addr
	for _, s := range ss {
		if a, err := netip.ParseAddr(s); err == nil { // "None" and host names are no addresses
			out = append(out, a)
		}
	}
	return out
}

// waitProbes waits until all probes run, or startLimit has passed. Probes that
// do not run by then are failures of the cells that need them.
func (r *runner) waitProbes(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	q := url.Values{"labelSelector": {labelRun + "=" + r.id}}
	var last error
	err := poll(ctx, func() (bool, error) {
		var pods corev1.PodList
		last = r.api.Get(ctx, "/api/v1/namespaces/"+Namespace+"/pods?"+q.Encode(), &pods)
		// An API server that is away may be back before the limit.
		return last == nil && r.placePods(pods.Items), nil
	})
	if err != nil && last != nil {
		return last
	}
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// placePods notes each node's probes and says whether all of them run.
func (r *runner) placePods(pods []corev1.Pod) bool {
	all := true
	for i := range r.topo.Nodes {
		n := &r.topo.Nodes[i]
		for role, into := range map[string]*Pod{roleA: &n.A, roleB: &n.B, roleHost: &n.Host} {
			*into = probeOn(pods, n, role)
			all = all && into.Why == ""
		}
	}
	return all
}

func probeOn(pods []corev1.Pod, n *Node, role string) Pod {
	for i := range pods {
		p := &pods[i]
		if p.Spec.NodeName != n.Name || p.Labels[labelRole] != role || p.DeletionTimestamp != nil {
			continue
		}
		out := Pod{Name: p.Name, Why: notRunning(p, n)}
		for _, ip := range p.Status.PodIPs {
			out.Addrs = append(out.Addrs, parseAddrs([]string{ip.IP})...)
		}
		if out.Why == "" && len(out.Addrs) == 0 {
			out.Why = fmt.Sprintf("pod %s on %s has no address", p.Name, n.Name)
		}
		return out
	}
	return Pod{Name: role, Why: fmt.Sprintf("%s was not started on %s: see `kubectl -n %s describe daemonset %s` (with --keep)", role, n.Name, Namespace, role)}
}

func notRunning(p *corev1.Pod, n *Node) string {
	why := strings.ToLower(string(p.Status.Phase))
	for _, c := range p.Status.ContainerStatuses {
		switch {
		case c.State.Running != nil:
			return ""
		case c.State.Waiting != nil:
			why = strings.TrimSpace(c.State.Waiting.Reason + " " + c.State.Waiting.Message)
		case c.State.Terminated != nil:
			why = strings.TrimSpace("ended: " + c.State.Terminated.Reason + " " + strings.TrimSpace(c.State.Terminated.Message))
		}
	}
	return fmt.Sprintf("pod %s on %s does not run: %s", p.Name, n.Name, why)
}

// waitListening lets every probe that runs wait for its own server: running
// does not mean listening yet.
func (r *runner) waitListening(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelExec)
	for i := range r.topo.Nodes {
		n := &r.topo.Nodes[i]
		for _, pod := range []*Pod{&n.A, &n.B, &n.Host} {
			if pod.Why != "" {
				continue
			}
			g.Go(func() error {
				plan := ProbePlan{Token: r.token.String(), WaitLimit: waitServices}
				for _, a := range pod.Addrs {
					plan.Wait = append(plan.Wait, netip.AddrPortFrom(a, r.opts.Port))
				}
				if _, err := r.exec(gctx, pod.Name, &plan, func(Result) {}); err != nil {
					pod.Why = fmt.Sprintf("pod %s on %s: %s", pod.Name, n.Name, err)
				}
				return nil
			})
		}
	}
	return g.Wait()
}
