// SPDX-License-Identifier: Apache-2.0

package connectivity

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

// adopt takes over the probes that a run with Keep left, on the nodes where it
// started them. Nothing is made and nothing waited for, so that it also works
// on a network that can start no pod.
func (r *runner) adopt(ctx context.Context) error {
	var ns corev1.Namespace
	err := r.api.Get(ctx, "/api/v1/namespaces/"+Namespace, &ns)
	if r.api.Gone(err) || (err == nil && (ns.Labels[labelPartOf] != partOf || ns.DeletionTimestamp != nil)) {
		return fmt.Errorf("namespace %s has no probes to use again: run the test with --keep first", Namespace)
	}
	if err != nil {
		return err
	}
	r.id = ns.Labels[labelRun]
	if err := r.readSecrets(ctx); err != nil {
		return err
	}
	if t := r.opts.Outside.Token; t != nil && *t != r.token {
		return errors.New("--external-token is not the one of the run with --keep: give both runs the same, or delete the probes")
	}
	if err := r.readCluster(ctx); err != nil {
		return err
	}
	var pods corev1.PodList
	q := url.Values{"labelSelector": {labelRun + "=" + r.id}}
	if err := r.api.Get(ctx, "/api/v1/namespaces/"+Namespace+"/pods?"+q.Encode(), &pods); err != nil {
		return err
	}
	if err := r.findHairpins(ctx, q); err != nil {
		return err
	}
	if len(r.topo.Nodes) == 0 || len(pods.Items) == 0 {
		return fmt.Errorf("namespace %s has no probes to use again: delete it and run the test with --keep", Namespace)
	}
	r.placePods(pods.Items)
	return nil
}

// readSecrets reads token and port from what the probes were told.
func (r *runner) readSecrets(ctx context.Context) error {
	var set appsv1.DaemonSet
	if err := r.api.Get(ctx, "/apis/apps/v1/namespaces/"+Namespace+"/daemonsets/"+roleA, &set); err != nil {
		return fmt.Errorf("daemonset %s: %w", roleA, err)
	}
	for _, c := range set.Spec.Template.Spec.Containers {
		for _, e := range c.Env {
			var err error
			switch e.Name {
			case EnvToken:
				r.token, err = ParseToken(e.Value)
			case EnvPort:
				var port uint64
				port, err = strconv.ParseUint(e.Value, 10, 16)
				r.opts.Port = uint16(port)
			}
			if err != nil {
				return fmt.Errorf("daemonset %s: %s: %w", roleA, e.Name, err)
			}
		}
	}
	return nil
}

// findHairpins reads each node's Service. The nodes that have one are those of
// the run before; one of them whose probes are gone fails, it is not left out.
func (r *runner) findHairpins(ctx context.Context, q url.Values) error {
	var list corev1.ServiceList
	if err := r.api.Get(ctx, "/api/v1/namespaces/"+Namespace+"/services?"+q.Encode(), &list); err != nil {
		return err
	}
	byNode := map[string]Service{}
	for i := range list.Items {
		svc := &list.Items[i]
		byNode[svc.Annotations[annotationNode]] = Service{Name: svc.Name, Addrs: parseAddrs(svc.Spec.ClusterIPs), Port: r.opts.Port}
	}
	r.topo.Nodes = slices.DeleteFunc(r.topo.Nodes, func(n Node) bool {
		_, had := byNode[n.Name]
		return !had
	})
	for i := range r.topo.Nodes {
		r.topo.Nodes[i].Hairpin = byNode[r.topo.Nodes[i].Name]
	}
	return nil
}
