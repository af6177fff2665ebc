// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-net/weft/internal/cli/kube"
)

const uninstallLong = `Removes Weft from every node and from the cluster.

It starts a helper on each node, ends the agents, and takes off each node programs,
maps, devices, routes, rules and files. Then it deletes the other objects of the
release, and the custom resource definitions that Weft installed; definitions of
others stay. If a node cannot be cleaned it stops and names it; run it again to go on.

Pods lose their network. Without --yes it only says what it would do.`

// weftSelector finds what Weft's chart made.
const weftSelector = "app.kubernetes.io/part-of=weft"

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

// installation is what there is to remove.
type installation struct {
	app *app
	api cluster
	// agents is the agents' DaemonSet, cleaner that of an uninstall that was
	// begun; nil where there is none.
	agents, cleaner *appsv1.DaemonSet
	objects         []object
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
		{"lease", "/apis/coordination.k8s.io/v1" + ns + "/leases"},
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
	inst, err := a.installation(ctx)
	if err != nil {
		return err
	}
	inst.plan()
	if f.dryRun {
		return nil
	}
	if !f.yes {
		return errors.New("nothing was removed; pods lose their network by this: add --yes to do it")
	}
	if inst.agents != nil || inst.cleaner != nil {
		if err := inst.cleanNodes(ctx, f.force); err != nil {
			return err
		}
	}
	for _, o := range inst.objects {
		if err := inst.api.Do(ctx, http.MethodDelete, o.path, nil, nil); err != nil && !kube.IsNotFound(err) {
			return fmt.Errorf("%s: %w", o, err)
		}
	}
	fmt.Fprintln(a.Out, "removed")
	return nil
}

// installation finds what Weft put into the cluster, also where an uninstall
// was begun and not ended.
func (a *app) installation(ctx context.Context) (*installation, error) {
	api, err := a.connect(a.opts.kubeconfig, a.opts.context)
	if err != nil {
		return nil, err
	}
	inst := &installation{app: a, api: api}
	if inst.agents, err = inst.daemonSet(ctx, daemonSetName); err != nil {
		return nil, err
	}
	if inst.agents != nil && inst.agents.Labels["app.kubernetes.io/part-of"] != "weft" {
		return nil, errForeign(a.opts.namespace)
	}
	if inst.cleaner, err = inst.daemonSet(ctx, cleanerName); err != nil {
		return nil, err
	}
	for _, c := range collections(a.opts.namespace) {
		found, err := inst.list(ctx, c, weftSelector)
		if err != nil {
			return nil, err
		}
		inst.objects = append(inst.objects, found...)
	}
	if release := inst.release(); release != "" {
		// The records of the Helm release, which would keep its name taken.
		records, err := inst.list(ctx, collection{"secret", "/api/v1/namespaces/" + a.opts.namespace + "/secrets"}, "owner=helm,name="+release)
		if err != nil {
			return nil, err
		}
		inst.objects = append(inst.objects, records...)
	}
	if inst.agents == nil && inst.cleaner == nil && len(inst.objects) == 0 {
		return nil, fmt.Errorf("nothing of Weft in namespace %s; give -n NAMESPACE if it is elsewhere", a.opts.namespace)
	}
	return inst, nil
}

// errForeign says that the DaemonSet is not Weft's.
func errForeign(namespace string) error {
	return fmt.Errorf("DaemonSet %s/%s is not Weft's (it lacks the label app.kubernetes.io/part-of=weft): this cluster seems to run Cilium", namespace, daemonSetName)
}

const releaseAnnotation = "meta.helm.sh/release-name"

// release is the Helm release, "" for none. The cleaner remembers the agents'.
func (i *installation) release() string {
	for _, ds := range []*appsv1.DaemonSet{i.agents, i.cleaner} {
		if ds != nil && ds.Annotations[releaseAnnotation] != "" {
			return ds.Annotations[releaseAnnotation]
		}
	}
	return ""
}

// daemonSet reads a DaemonSet, nil if there is none.
func (i *installation) daemonSet(ctx context.Context, name string) (*appsv1.DaemonSet, error) {
	var ds appsv1.DaemonSet
	err := i.api.Get(ctx, i.sets()+"/"+name, &ds)
	if kube.IsNotFound(err) {
		return nil, nil //nolint:nilnil // none is an answer
	}
	if err != nil {
		return nil, fmt.Errorf("daemonset %s: %w", name, err)
	}
	return &ds, nil
}

func (i *installation) sets() string {
	return "/apis/apps/v1/namespaces/" + i.app.opts.namespace + "/daemonsets"
}

// plan says what will be removed.
func (i *installation) plan() {
	out := i.app.Out
	if ds := i.agents; ds != nil {
		fmt.Fprintf(out, "end the agents on %d nodes: delete daemonset %s\n", ds.Status.DesiredNumberScheduled, ds.Name)
	}
	if i.agents != nil || i.cleaner != nil {
		fmt.Fprintln(out, "clean each node: programs, maps, devices, routes, rules and files")
	}
	for _, o := range i.objects {
		fmt.Fprintf(out, "delete %s\n", o)
	}
}

// list asks for metadata only: nothing of an object's content is needed, least
// of all of a secret's.
func (i *installation) list(ctx context.Context, c collection, selector string) ([]object, error) {
	var l metav1.PartialObjectMetadataList
	q := url.Values{"labelSelector": {selector}}
	err := i.api.Get(ctx, c.path+"?"+q.Encode(), &l)
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
