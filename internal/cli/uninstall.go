// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-net/weft/internal/cli/kube"
)

const uninstallLong = `Removes Weft from every node and from the cluster.

On each node, in the agent's pod, it takes off programs, maps, devices, routes, rules and
files. Then it deletes the DaemonSet, the other objects of the release, and the custom
resource definitions that Weft installed; definitions of others stay.

Pods lose their network. Without --yes it only says what it would do.`

// weftSelector finds what Weft's chart made.
const weftSelector = "app.kubernetes.io/part-of=weft"

// podsGone is how long the agents' pods may take to end.
const podsGone = 2 * time.Minute

type uninstallFlags struct {
	dryRun, yes, force bool
}

func (a *app) uninstallCommand() *cobra.Command {
	var f uninstallFlags
	c := &cobra.Command{
		Use: "uninstall", Short: "Remove Weft from all nodes and from the cluster", Long: uninstallLong, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.uninstall(cmd.Context(), f) },
	}
	c.Flags().BoolVar(&f.dryRun, "dry-run", false, "only say what would be removed")
	c.Flags().BoolVar(&f.yes, "yes", false, "do it")
	c.Flags().BoolVar(&f.force, "force", false, "go on although some nodes could not be cleaned; they have to be by hand")
	return c
}

// object is something to delete.
type object struct {
	kind, name, path string
}

func (o object) String() string { return o.kind + " " + o.name }

// collection is a kind of object that the chart may make. The order is that of
// deletion: what acts goes before what it needs.
type collection struct{ kind, path string }

func collections(namespace string) []collection {
	ns := "/namespaces/" + namespace
	return []collection{
		{"deployment", "/apis/apps/v1" + ns + "/deployments"},
		{"service", "/api/v1" + ns + "/services"},
		{"configmap", "/api/v1" + ns + "/configmaps"},
		{"rolebinding", "/apis/rbac.authorization.k8s.io/v1" + ns + "/rolebindings"},
		{"role", "/apis/rbac.authorization.k8s.io/v1" + ns + "/roles"},
		{"clusterrolebinding", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"},
		{"clusterrole", "/apis/rbac.authorization.k8s.io/v1/clusterroles"},
		{"serviceaccount", "/api/v1" + ns + "/serviceaccounts"},
		{"validatingadmissionpolicybinding", "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings"},
		{"validatingadmissionpolicy", "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"},
		{"customresourcedefinition", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"},
	}
}

func (a *app) uninstall(ctx context.Context, f uninstallFlags) error {
	if len(a.opts.nodes) > 0 {
		return errors.New("uninstall: it is all nodes or none; leave out --node")
	}
	if a.opts.local {
		return errors.New("uninstall: run it where kubectl works; for one node there is `weft-agent uninstall-node`")
	}
	fl, err := a.fleet(ctx)
	if err != nil {
		return err
	}
	objs, err := fl.objects(ctx)
	if err != nil {
		return err
	}
	for _, ag := range fl.agents {
		fmt.Fprintf(a.Out, "node %s: clean programs, maps, devices, routes, rules and files\n", ag.node)
	}
	fmt.Fprintf(a.Out, "delete daemonset %s\n", daemonSetName)
	for _, o := range objs {
		fmt.Fprintf(a.Out, "delete %s\n", o)
	}
	if f.dryRun {
		return nil
	}
	if !f.yes {
		return errors.New("nothing was removed; pods lose their network by this: add --yes to do it")
	}
	if err := fl.cleanNodes(ctx); err != nil && !f.force {
		return &exitError{code: ExitUsage, err: fmt.Errorf("%w; the DaemonSet stays, so that you can try again, or add --force", err)}
	}
	if err := fl.deleteDaemonSet(ctx); err != nil {
		return err
	}
	for _, o := range objs {
		if err := fl.api.Do(ctx, http.MethodDelete, o.path, nil, nil); err != nil && !kube.IsNotFound(err) {
			return fmt.Errorf("%s: %w", o, err)
		}
	}
	fmt.Fprintln(a.Out, "removed")
	return nil
}

// objects lists what carries Weft's label, and the records of its Helm release.
func (f *fleet) objects(ctx context.Context) ([]object, error) {
	ns := f.app.opts.namespace
	var out []object
	for _, c := range collections(ns) {
		found, err := f.list(ctx, c, weftSelector)
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
	}
	release := f.release
	if release == "" {
		return out, nil
	}
	records, err := f.list(ctx, collection{"secret", "/api/v1/namespaces/" + ns + "/secrets"}, "owner=helm,name="+release)
	return append(out, records...), err
}

// list asks for metadata only: nothing of an object's content is needed, least
// of all of a secret's.
func (f *fleet) list(ctx context.Context, c collection, selector string) ([]object, error) {
	var l metav1.PartialObjectMetadataList
	q := url.Values{"labelSelector": {selector}}
	err := f.api.Get(ctx, c.path+"?"+q.Encode(), &l)
	if kube.IsNotFound(err) {
		return nil, nil // the cluster does not have the kind
	}
	if err != nil {
		return nil, fmt.Errorf("%ss: %w", c.kind, err)
	}
	out := make([]object, 0, len(l.Items))
	for _, o := range l.Items {
		out = append(out, object{kind: c.kind, name: o.Name, path: c.path + "/" + o.Name})
	}
	return out, nil
}

// cleanNodes runs the clean-up in every agent's pod and names the nodes where
// it did not work.
func (f *fleet) cleanNodes(ctx context.Context) error {
	var mu sync.Mutex
	var failed []string
	var g errgroup.Group
	g.SetLimit(maxParallel)
	for _, ag := range f.agents {
		g.Go(func() error {
			err := f.cleanNode(ctx, ag)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = append(failed, ag.node)
				fmt.Fprintf(f.app.Err, "%s: %s\n", ag.node, err)
			} else {
				fmt.Fprintf(f.app.Out, "%s: clean\n", ag.node)
			}
			return nil
		})
	}
	_ = g.Wait() // errors were noted
	if len(failed) > 0 {
		return fmt.Errorf("not cleaned: %s", strings.Join(failed, ", "))
	}
	return nil
}

func (f *fleet) cleanNode(ctx context.Context, ag agent) error {
	if ag.why != "" {
		return errors.New(ag.why)
	}
	const limit = time.Minute
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not done within %s", limit))
	defer cancel()
	out := &headBuffer{limit: 64 << 10}
	err := f.api.Exec(ctx, kube.ExecRequest{
		Namespace: f.app.opts.namespace, Pod: ag.pod, Container: agentContainer,
		Command: []string{"weft-agent", "uninstall-node"}, Stdout: out, Stderr: out,
	})
	if msg := lastLine(out.String()); err != nil && msg != "" {
		return fmt.Errorf("%w: %s", err, msg)
	}
	return err
}

// deleteDaemonSet deletes it and waits until its pods have ended, so that no
// agent is left that could put things back.
func (f *fleet) deleteDaemonSet(ctx context.Context) error {
	base := "/namespaces/" + f.app.opts.namespace
	err := f.api.Do(ctx, http.MethodDelete, "/apis/apps/v1"+base+"/daemonsets/"+daemonSetName, nil, nil)
	if err != nil && !kube.IsNotFound(err) {
		return fmt.Errorf("daemonset %s: %w", daemonSetName, err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, podsGone, fmt.Errorf("agents' pods have not ended within %s", podsGone))
	defer cancel()
	tick := time.NewTicker(pollInterval / 4)
	defer tick.Stop()
	q := url.Values{"labelSelector": {agentSelector}}
	for {
		var pods corev1.PodList
		if err := f.api.Get(ctx, "/api/v1"+base+"/pods?"+q.Encode(), &pods); err == nil && len(pods.Items) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}
