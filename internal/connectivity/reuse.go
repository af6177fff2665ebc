// SPDX-License-Identifier: Apache-2.0

package connectivity

import (
	"context"
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
	if err := r.readCluster(ctx); err != nil {
		return err
	}
	var pods corev1.PodList
	q := url.Values{"labelSelector": {labelRun + "=" + r.id}}
	if err := r.api.Get(ctx, "/api/v1/namespaces/"+Namespace+"/pods?"+q.Encode(), &pods); err != nil {
		return err
	}
	r.topo.Nodes = slices.DeleteFunc(r.topo.Nodes, func(n Node) bool {
		return !slices.ContainsFunc(pods.Items, func(p corev1.Pod) bool { return p.Spec.NodeName == n.Name })
	})
	if len(r.topo.Nodes) == 0 {
		return fmt.Errorf("namespace %s has no probes to use again: delete it and run the test with --keep", Namespace)
	}
	r.placePods(pods.Items)
	return r.findHairpins(ctx)
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

func (r *runner) findHairpins(ctx context.Context) error {
	for i := range r.topo.Nodes {
		n := &r.topo.Nodes[i]
		var svc corev1.Service
		err := r.api.Get(ctx, "/api/v1/namespaces/"+Namespace+"/services/"+hairpinName(i), &svc)
		n.Hairpin = Service{Name: hairpinName(i), Addrs: parseAddrs(svc.Spec.ClusterIPs), Port: r.opts.Port}
		if r.api.Gone(err) {
			n.Hairpin.Why = fmt.Sprintf("there is no Service %s/%s", Namespace, hairpinName(i))
		} else if err != nil {
			return err
		}
	}
	return nil
}
