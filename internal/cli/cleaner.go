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

	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/cli/kube"
)

// cleanerName names the DaemonSet of helpers that clean the nodes, and its
// pods' label.
const cleanerName = "weft-uninstall"

// How long the parts of cleaning may take.
const (
	helpersStart = 90 * time.Second
	podsGone     = 2 * time.Minute
	cleanLimit   = time.Minute // of one node
)

// holdCommand is what a helper does until it is told what.
func (a *app) holdCommand() *cobra.Command {
	return &cobra.Command{
		Use: "hold", Short: "Wait to be ended (runs in the helpers of uninstall)", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			<-cmd.Context().Done()
			return nil
		},
	}
}

// sweepCommand ends the cleaning of a node.
func (a *app) sweepCommand() *cobra.Command {
	return &cobra.Command{
		Use: "sweep-node", Short: "Remove the agent's directory and mount (runs in the helpers of uninstall)", Hidden: true, Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return sweepNode() },
	}
}

// cleanNodes cleans every node. The helpers start first, so that nothing is
// lost if they cannot; then the agents end, because a living agent would put
// back what is taken off; then the helpers clean.
func (i *installation) cleanNodes(ctx context.Context, force bool) error {
	say := i.app.Out
	if i.cleaner == nil {
		ds := cleanerOf(i.agents)
		if err := i.api.Do(ctx, http.MethodPost, i.sets(), ds, nil); err != nil && !kube.IsExists(err) {
			return fmt.Errorf("daemonset %s: %w", cleanerName, err)
		}
	}
	fmt.Fprintln(say, "starting a helper on each node")
	helpers, err := i.helpers(ctx)
	if err != nil {
		return err
	}
	if err := i.complain(helpers, force, "nothing was removed so far"); err != nil {
		return err
	}
	if i.agents != nil {
		fmt.Fprintln(say, "ending the agents")
		if err := i.deleteAndWait(ctx, daemonSetName, agentSelector); err != nil {
			return err
		}
	}
	var g errgroup.Group
	g.SetLimit(maxParallel)
	var mu sync.Mutex
	for n := range helpers {
		h := &helpers[n]
		if h.why != "" {
			continue
		}
		g.Go(func() error {
			err := i.clean(ctx, h)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				h.why = err.Error()
			} else {
				fmt.Fprintf(say, "%s: clean\n", h.node)
			}
			return nil
		})
	}
	_ = g.Wait() // errors stand in the helpers
	if err := i.complain(helpers, force, "run it again to go on"); err != nil {
		return err
	}
	return i.deleteAndWait(ctx, cleanerName, "app.kubernetes.io/name="+cleanerName)
}

// complain names the nodes with a trouble and returns the error to end with,
// nil where there are none or they are to be passed over.
func (i *installation) complain(helpers []agent, force bool, next string) error {
	var bad []string
	for _, h := range helpers {
		if h.why != "" {
			bad = append(bad, h.node)
			fmt.Fprintf(i.app.Err, "%s: %s\n", h.node, h.why)
		}
	}
	if len(bad) == 0 || force {
		return nil
	}
	return fmt.Errorf("not clean: %s; %s, or add --force to leave them as they are", strings.Join(bad, ", "), next)
}

// cleanerOf makes the helpers' DaemonSet out of the agents': the same image,
// nodes and directories of the node, but nothing that runs by itself.
// Privileged, and with mounts that reach the node, because the agent's init
// container mounted into the node with the same rights.
func cleanerOf(agents *appsv1.DaemonSet) *appsv1.DaemonSet {
	labels := map[string]string{"app.kubernetes.io/name": cleanerName, "app.kubernetes.io/part-of": "weft"}
	pod := *agents.Spec.Template.Spec.DeepCopy()
	yes, no, grace, root := true, false, int64(1), int64(0)
	pod.InitContainers = nil
	pod.HostPID = true // for sweepNode
	pod.ServiceAccountName, pod.DeprecatedServiceAccount = "", ""
	pod.AutomountServiceAccountToken = &no
	pod.TerminationGracePeriodSeconds = &grace
	both := corev1.MountPropagationBidirectional
	var keep []corev1.Container
	for _, c := range pod.Containers {
		if c.Name != agentContainer {
			continue
		}
		c.Command, c.Args = []string{"/usr/bin/weft", "hold"}, nil
		c.LivenessProbe, c.ReadinessProbe, c.StartupProbe, c.Lifecycle, c.Ports = nil, nil, nil, nil, nil
		c.SecurityContext = &corev1.SecurityContext{Privileged: &yes, RunAsUser: &root}
		for m := range c.VolumeMounts {
			if p := c.VolumeMounts[m].MountPropagation; p != nil && *p == corev1.MountPropagationHostToContainer {
				c.VolumeMounts[m].MountPropagation, c.VolumeMounts[m].ReadOnly = &both, false
			}
		}
		keep = append(keep, c)
	}
	pod.Containers = keep
	return &appsv1.DaemonSet{
		TypeMeta: metav1.TypeMeta{APIVersion: "apps/v1", Kind: "DaemonSet"},
		ObjectMeta: metav1.ObjectMeta{
			Name: cleanerName, Labels: labels,
			Annotations: map[string]string{releaseAnnotation: agents.Annotations[releaseAnnotation]},
		},
		Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: pod},
		},
	}
}

// helpers waits until there is a helper on every node where one is due, and
// returns them; why is set for those that do not run.
func (i *installation) helpers(ctx context.Context) ([]agent, error) {
	ctx, cancel := context.WithTimeout(ctx, helpersStart)
	defer cancel()
	q := url.Values{"labelSelector": {"app.kubernetes.io/name=" + cleanerName}}
	var found []agent
	err := i.poll(ctx, func() (bool, error) {
		ds, err := i.daemonSet(ctx, cleanerName)
		if err != nil || ds == nil || ds.Status.ObservedGeneration < ds.Generation {
			return false, err
		}
		var pods corev1.PodList
		if err := i.api.Get(ctx, "/api/v1/namespaces/"+i.app.opts.namespace+"/pods?"+q.Encode(), &pods); err != nil {
			return false, err
		}
		if found, err = pickAgents(pods.Items, nil); err != nil {
			return false, err
		}
		running := int32(0)
		for _, h := range found {
			if h.why == "" {
				running++
			}
		}
		return running >= ds.Status.DesiredNumberScheduled && running > 0, nil
	})
	if errors.Is(err, context.DeadlineExceeded) && len(found) > 0 {
		return found, nil // complain names those that do not run
	}
	if err != nil {
		return nil, fmt.Errorf("helpers did not start: %w; see `kubectl -n %s describe daemonset %s`", err, i.app.opts.namespace, cleanerName)
	}
	return found, nil
}

// poll calls f until it says so, fails or the context ends.
func (i *installation) poll(ctx context.Context, f func() (bool, error)) error {
	tick := time.NewTicker(pollInterval / 4)
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

func (i *installation) clean(ctx context.Context, h *agent) error {
	ctx, cancel := context.WithTimeoutCause(ctx, cleanLimit, fmt.Errorf("not done within %s", cleanLimit))
	defer cancel()
	for _, command := range [][]string{
		{"/usr/bin/weft-agent", "uninstall-node"},
		{"/usr/bin/weft", "sweep-node"},
	} {
		out, errOut := &headBuffer{limit: 64 << 10}, &headBuffer{limit: 64 << 10}
		err := i.api.Exec(ctx, kube.ExecRequest{
			Namespace: i.app.opts.namespace, Pod: h.pod, Container: agentContainer,
			Command: command, Stdout: out, Stderr: errOut,
		})
		if msg := strings.ReplaceAll(strings.TrimSpace(errOut.String()), "\n", "; "); err != nil && msg != "" {
			return fmt.Errorf("%w: %s", err, msg)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// deleteAndWait deletes a DaemonSet and waits until its pods have ended.
func (i *installation) deleteAndWait(ctx context.Context, name, selector string) error {
	if err := i.api.Do(ctx, http.MethodDelete, i.sets()+"/"+name, nil, nil); err != nil && !kube.IsNotFound(err) {
		return fmt.Errorf("daemonset %s: %w", name, err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, podsGone, fmt.Errorf("its pods have not ended within %s", podsGone))
	defer cancel()
	q := url.Values{"labelSelector": {selector}}
	err := i.poll(ctx, func() (bool, error) {
		var pods corev1.PodList
		err := i.api.Get(ctx, "/api/v1/namespaces/"+i.app.opts.namespace+"/pods?"+q.Encode(), &pods)
		return err == nil && len(pods.Items) == 0, nil
	})
	if err != nil {
		return fmt.Errorf("daemonset %s: %w", name, err)
	}
	return nil
}
