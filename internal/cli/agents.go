// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"sort"
	"strings"

	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/weft-net/weft/internal/cli/kube"
	"github.com/weft-net/weft/internal/rpc"
)

// Names of the installed objects, as the runbooks know them.
const (
	daemonSetName  = "cilium"
	agentContainer = "cilium-agent"
	agentSelector  = "k8s-app=cilium,app.kubernetes.io/part-of=weft"
)

// maxParallel bounds how many nodes are asked at a time.
const maxParallel = 32

// agent is the agent's pod on one node. Why says what keeps it from being
// asked, "" for nothing.
type agent struct {
	node, pod string
	why       string
}

// fleet is the cluster's agents and a way to reach them.
type fleet struct {
	app    *app
	api    cluster
	agents []agent // sorted by node
	daemon appsv1.DaemonSetStatus
	image  string // of the agent's container
}

// fleet finds the agents through the API server.
func (a *app) fleet(ctx context.Context) (*fleet, error) {
	api, err := a.connect(a.opts.kubeconfig, a.opts.context)
	if err != nil {
		return nil, err
	}
	f := &fleet{app: a, api: api}
	var ds appsv1.DaemonSet
	err = api.Get(ctx, "/apis/apps/v1/namespaces/"+a.opts.namespace+"/daemonsets/"+daemonSetName, &ds)
	if kube.IsNotFound(err) {
		return nil, fmt.Errorf("no DaemonSet %s in namespace %s: Weft is not installed there; give -n NAMESPACE or install it", daemonSetName, a.opts.namespace)
	}
	if err != nil {
		return nil, err
	}
	if ds.Labels["app.kubernetes.io/part-of"] != "weft" {
		return nil, errForeign(a.opts.namespace)
	}
	f.daemon = ds.Status
	for _, c := range ds.Spec.Template.Spec.Containers {
		if c.Name == agentContainer {
			f.image = c.Image
		}
	}
	var pods corev1.PodList
	q := url.Values{"labelSelector": {agentSelector}}
	if err := api.Get(ctx, "/api/v1/namespaces/"+a.opts.namespace+"/pods?"+q.Encode(), &pods); err != nil {
		return nil, err
	}
	f.agents, err = pickAgents(pods.Items, a.opts.nodes)
	return f, err
}

// pickAgents returns one agent a node, of the nodes wanted (none: all).
func pickAgents(pods []corev1.Pod, nodes []string) ([]agent, error) {
	byNode := map[string]agent{}
	for i := range pods {
		p := &pods[i]
		node := p.Spec.NodeName
		if node == "" || (len(nodes) > 0 && !slices.Contains(nodes, node)) {
			continue
		}
		ag := agent{node: node, pod: p.Name, why: whyNot(p)}
		// During a rollout a node has an old and a new pod: the one that runs counts.
		if old, ok := byNode[node]; ok && old.why == "" {
			continue
		}
		byNode[node] = ag
	}
	for _, n := range nodes {
		if _, ok := byNode[n]; !ok {
			return nil, fmt.Errorf("--node %s: no agent's pod there; `kubectl get nodes` lists the nodes", n)
		}
	}
	out := make([]agent, 0, len(byNode))
	for _, ag := range byNode {
		out = append(out, ag)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].node < out[j].node })
	return out, nil
}

// whyNot says in a few words why nothing can be run in the agent's pod.
func whyNot(p *corev1.Pod) string {
	if p.DeletionTimestamp != nil {
		return "agent's pod is being deleted"
	}
	for _, c := range p.Status.ContainerStatuses {
		if c.Name != agentContainer {
			continue
		}
		switch {
		case c.State.Running != nil:
			return ""
		case c.State.Waiting != nil && c.State.Waiting.Reason != "":
			return "agent's container is waiting: " + c.State.Waiting.Reason
		case c.State.Terminated != nil:
			return fmt.Sprintf("agent's container ended: %s (exit code %d)", c.State.Terminated.Reason, c.State.Terminated.ExitCode)
		}
	}
	return "agent's pod is " + strings.ToLower(string(p.Status.Phase))
}

// reply is what one node answered. Node is empty where this node was asked.
type reply struct {
	node string
	body []byte
	err  error
}

// ask runs the command line in every agent's container, in parallel, each
// bounded by --node-timeout. Answers come in the order of the nodes.
func (f *fleet) ask(ctx context.Context, args ...string) []reply {
	out := make([]reply, len(f.agents))
	var g errgroup.Group
	g.SetLimit(maxParallel)
	for i, ag := range f.agents {
		g.Go(func() error {
			out[i] = f.askOne(ctx, ag, args)
			return nil
		})
	}
	_ = g.Wait() // errors stand in the replies
	return out
}

func (f *fleet) askOne(ctx context.Context, ag agent, args []string) reply {
	r := reply{node: ag.node}
	if ag.why != "" {
		r.err = errors.New(ag.why)
		return r
	}
	limit := f.app.opts.nodeTimeout
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %s; see --node-timeout", limit))
	defer cancel()
	stdout := &boundedBuffer{limit: rpc.MaxAnswer}
	stderr := &boundedBuffer{limit: 64 << 10}
	err := f.exec(ctx, ag, args, nil, stdout, stderr)
	r.body = stdout.Bytes()
	if _, ended := errors.AsType[*kube.ExitError](err); ended {
		// What the command printed about itself says more than its code.
		if msg := lastLine(stderr.String()); msg != "" {
			err = fmt.Errorf("%s", strings.TrimPrefix(msg, "Error: "))
		} else if len(r.body) > 0 {
			err = nil // answered, and found something wrong: `status`
		}
	}
	r.err = err
	return r
}

// exec runs the CLI itself in the agent's container.
func (f *fleet) exec(ctx context.Context, ag agent, args []string, in io.Reader, out, errOut io.Writer) error {
	return f.api.Exec(ctx, kube.ExecRequest{
		Namespace: f.app.opts.namespace, Pod: ag.pod, Container: agentContainer,
		Command: append([]string{"weft", "--local"}, args...),
		Stdin:   in, Stdout: out, Stderr: errOut,
	})
}

// complain names the nodes that did not answer, and returns the error to end with.
func (a *app) complain(replies []reply) error {
	silent := 0
	for _, r := range replies {
		if r.err == nil {
			continue
		}
		silent++
		if r.node == "" {
			return r.err
		}
		fmt.Fprintf(a.Err, "%s: %s\n", r.node, r.err)
	}
	if silent > 0 {
		return &exitError{code: ExitUsage, err: fmt.Errorf("%d of %d nodes did not answer", silent, len(replies))}
	}
	return nil
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}

// boundedBuffer refuses to grow beyond its limit: an agent cannot fill the
// memory of the laptop.
type boundedBuffer struct {
	bytes.Buffer
	limit int
}

func (b *boundedBuffer) Write(p []byte) (int, error) {
	if b.Len()+len(p) > b.limit {
		return 0, fmt.Errorf("answer is larger than %d bytes", b.limit)
	}
	return b.Buffer.Write(p)
}
