// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"github.com/weft-net/weft/internal/kubeproxy"
)

const cleanupLong = `Removes what kube-proxy left on nodes when it ended: its chains and rules in both
variants of iptables, its tables in nftables, its virtual services, device and sets of
the IPVS mode. What others made stays as it is, the kubelet's chains too.

A node on which kube-proxy still runs is refused, because it would make all anew.
Connections that it had translated go on, but for two kinds: those through IPVS, and
those of the nftables mode on a node where nobody else has a chain of type nat. New
connections to Services reach only what something else serves.

What cannot be removed is named and the rest goes on; run it again. Without --yes it
only lists what it would remove.`

// nodeProxy is what is known of kube-proxy on this node.
type nodeProxy interface {
	Running(ctx context.Context) (kubeproxy.Life, bool)
	Find(ctx context.Context) ([]kubeproxy.Object, error)
	Remove(ctx context.Context, told func(kubeproxy.Object)) error
}

// thisNode is the node, or its container, that the program runs on.
type thisNode struct{}

func (thisNode) Running(ctx context.Context) (kubeproxy.Life, bool)   { return kubeproxy.Running(ctx) }
func (thisNode) Find(ctx context.Context) ([]kubeproxy.Object, error) { return kubeproxy.Find(ctx) }
func (thisNode) Remove(ctx context.Context, told func(kubeproxy.Object)) error {
	return kubeproxy.Remove(ctx, told)
}

type cleanupFlags struct{ dryRun, yes bool }

// cleanup is what came of one node.
type cleanup struct {
	Node    string             `json:"node,omitempty"`
	Running string             `json:"running,omitempty"` // how it is known that kube-proxy runs
	Found   []kubeproxy.Object `json:"found,omitempty"`   // to be removed
	Removed []kubeproxy.Object `json:"removed,omitempty"`
	Errors  []string           `json:"errors,omitempty"`
}

func (a *app) kubeProxyCommand() *cobra.Command {
	var f cleanupFlags
	c := &cobra.Command{
		Use: "cleanup", Short: "Remove what kube-proxy left on nodes", Long: cleanupLong, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.dryRun && f.yes {
				return errors.New("--dry-run and --yes: give one of them")
			}
			if f.yes && !cmd.Flags().Changed("node-timeout") {
				a.opts.nodeTimeout = cleanLimit
			}
			return a.cleanupKubeProxy(cmd.Context(), f)
		},
	}
	c.Flags().BoolVar(&f.dryRun, "dry-run", false, "only list what would be removed")
	c.Flags().BoolVar(&f.yes, "yes", false, "do it")
	return group("kube-proxy", "What kube-proxy left behind", c)
}

func (a *app) cleanupKubeProxy(ctx context.Context, f cleanupFlags) error {
	var all []cleanup
	var replies []reply
	onNode := a.onNode()
	if onNode {
		all = []cleanup{a.cleanupHere(ctx, f)}
	} else {
		fl, err := a.fleet(ctx)
		if err != nil {
			return err
		}
		if all, replies, err = fl.cleanup(ctx, f); err != nil {
			return err
		}
	}
	if err := a.printCleanup(all, onNode, f); err != nil {
		return err
	}
	if err := a.complain(replies); err != nil {
		return err
	}
	if slices.ContainsFunc(all, func(c cleanup) bool { return len(c.Errors) > 0 || (f.yes && c.Running != "") }) {
		return &exitError{code: ExitFailing}
	}
	found := slices.ContainsFunc(all, func(c cleanup) bool { return len(c.Found) > 0 })
	if found && !f.yes && !f.dryRun {
		return errors.New("nothing was removed: add --yes to do it")
	}
	return nil
}

// cleanupHere looks at this node, and removes if it was told to and nothing
// speaks against it.
func (a *app) cleanupHere(ctx context.Context, f cleanupFlags) cleanup {
	var c cleanup
	if life, ok := a.proxy.Running(ctx); ok {
		c.Running = life.Sign
	}
	var err error
	switch {
	case !f.yes:
		c.Found, err = a.proxy.Find(ctx)
	case c.Running == "":
		err = a.proxy.Remove(ctx, func(o kubeproxy.Object) { c.Removed = append(c.Removed, o) })
	}
	for _, e := range flat(err) {
		c.Errors = append(c.Errors, e.Error())
	}
	return c
}

// flat takes joined errors apart.
func flat(err error) []error {
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var out []error
	for _, e := range joined.Unwrap() {
		out = append(out, flat(e)...)
	}
	return out
}

// cleanup has every agent clean its node, but those on whose nodes the API server
// knows a pod of kube-proxy: one that is just restarting does not answer.
func (f *fleet) cleanup(ctx context.Context, flags cleanupFlags) ([]cleanup, []reply, error) {
	pods, err := f.proxyPods(ctx)
	if err != nil {
		return nil, nil, err
	}
	verb := []string{"kube-proxy", "cleanup", "-o", "json", "--dry-run"}
	var refused []cleanup
	if flags.yes {
		verb[len(verb)-1] = "--yes"
		f.agents = slices.DeleteFunc(f.agents, func(ag agent) bool {
			pod, there := pods[ag.node]
			if there {
				refused = append(refused, cleanup{Node: ag.node, Running: pod})
			}
			return there
		})
	}
	replies := f.ask(ctx, verb...)
	all := refused
	for i, r := range replies {
		if r.err != nil {
			continue
		}
		var c cleanup
		if err := json.Unmarshal(r.body, &c); err != nil {
			replies[i].err = fmt.Errorf("answer: %w", err)
			continue
		}
		c.Node = r.node
		if pod, ok := pods[r.node]; ok {
			c.Running = pod
		}
		all = append(all, c)
	}
	slices.SortFunc(all, func(x, y cleanup) int { return cmp.Compare(x.Node, y.Node) })
	return all, replies, nil
}

// proxyPods returns the pods of kube-proxy, by node, that run or will.
func (f *fleet) proxyPods(ctx context.Context) (map[string]string, error) {
	var pods corev1.PodList
	q := url.Values{"labelSelector": {"k8s-app=kube-proxy"}}
	if err := f.api.Get(ctx, "/api/v1/pods?"+q.Encode(), &pods); err != nil {
		return nil, fmt.Errorf("pods of kube-proxy: %w", err)
	}
	out := map[string]string{}
	for i := range pods.Items {
		if p := &pods.Items[i]; p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
			out[p.Spec.NodeName] = "pod " + p.Namespace + "/" + p.Name
		}
	}
	return out, nil
}

func (a *app) printCleanup(all []cleanup, onNode bool, f cleanupFlags) error {
	if a.opts.output != "table" {
		if onNode {
			return printObject(a.Out, a.opts.output, all[0])
		}
		return printObject(a.Out, a.opts.output, all)
	}
	header := kubeproxy.Object{}.TableHeader()
	if !onNode {
		header = append([]string{"NODE"}, header...)
	}
	var lines [][]string
	for _, c := range all {
		for i := range c.Found {
			line := c.Found[i].TableRow()
			if !onNode {
				line = append([]string{c.Node}, line...)
			}
			lines = append(lines, line)
		}
	}
	if len(lines) > 0 {
		if err := printTable(a.Out, header, lines); err != nil {
			return err
		}
	}
	for _, c := range all {
		for _, e := range c.Errors {
			fmt.Fprintf(a.Err, "%s%s\n", prefix(c.Node), e)
		}
		switch {
		case c.Running != "" && f.yes:
			fmt.Fprintf(a.Err, "%snothing was removed: kube-proxy runs (%s) and would make all anew; "+
				"end it, for instance with `kubectl -n kube-system delete daemonset kube-proxy`, and repeat\n", prefix(c.Node), c.Running)
		case f.yes:
			fmt.Fprintf(a.Out, "%sremoved %s\n", prefix(c.Node), kubeproxy.Count(c.Removed))
		default:
			fmt.Fprintf(a.Out, "%swould remove %s\n", prefix(c.Node), kubeproxy.Count(c.Found))
			if c.Running != "" {
				fmt.Fprintf(a.Out, "%skube-proxy still runs (%s): it has to end first\n", prefix(c.Node), c.Running)
			}
		}
	}
	return nil
}
