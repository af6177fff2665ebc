// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
)

const sysdumpLong = `Collects what is needed to understand a network that misbehaves into one tar.gz: the
agents' status, tables, maps, configuration, metrics and logs; what operators logged; each node's addresses,
routes, rules, neighbours, links and packet filter; the CNI configuration; and the
Kubernetes objects of the network.

Secrets are never read. Values of environment variables and whatever is named like a
token or password are taken out. Size and time are bounded; what is missing or cut
stands in manifest.json with the reason.`

type sysdumpFlags struct {
	file    string
	timeout time.Duration
}

func (a *app) sysdumpCommand() *cobra.Command {
	var f sysdumpFlags
	c := &cobra.Command{
		Use: "sysdump", Short: "Collect everything about the network into one archive", Long: sysdumpLong, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.sysdump(cmd.Context(), f) },
	}
	c.Flags().StringVarP(&f.file, "file", "f", "", "file to write, - for standard output (default weft-sysdump-TIME.tar.gz)")
	c.Flags().DurationVar(&f.timeout, "timeout", 2*time.Minute, "how long collecting may take")
	return c
}

func (a *app) sysdump(ctx context.Context, f sysdumpFlags) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, f.timeout, fmt.Errorf("the sysdump's --timeout of %s is over", f.timeout))
	defer cancel()
	var collect func(context.Context, *archive) error
	if a.onNode() {
		collect = a.collectNode
	} else {
		fl, err := a.fleet(ctx)
		if err != nil {
			return err
		}
		collect = fl.collect
	}
	out := a.Out
	if f.file != "-" {
		if f.file == "" {
			f.file = time.Now().UTC().Format("weft-sysdump-20060102-150405.tar.gz")
		}
		file, err := os.OpenFile(f.file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return fmt.Errorf("sysdump: %w", err)
		}
		defer func() {
			if cerr := file.Close(); err == nil && cerr != nil {
				err = fmt.Errorf("sysdump: %w", cerr)
			}
		}()
		out = file
	}
	ar := newArchive(out, time.Now)
	cerr := collect(ctx, ar)
	incomplete, werr := ar.close()
	if err := errors.Join(cerr, werr); err != nil {
		return fmt.Errorf("sysdump: %w", err)
	}
	if f.file != "-" {
		fmt.Fprintf(a.Out, "%s: %d items", f.file, len(ar.manifest))
		if incomplete > 0 {
			fmt.Fprintf(a.Out, ", %d missing or cut (see %s in it)", incomplete, manifestName)
		}
		fmt.Fprintln(a.Out)
	}
	return nil
}

// collect gathers the cluster's objects and every node's own sysdump. Nothing
// that fails keeps the rest from being collected.
func (f *fleet) collect(ctx context.Context, ar *archive) error {
	var g errgroup.Group
	g.SetLimit(8)
	ns := f.app.opts.namespace
	for name, at := range map[string]string{
		"nodes":            "/api/v1/nodes",
		"pods":             "/api/v1/namespaces/" + ns + "/pods",
		"events":           "/api/v1/events?limit=5000",
		"daemonsets":       "/apis/apps/v1/namespaces/" + ns + "/daemonsets",
		"services":         "/api/v1/services?limit=5000",
		"endpointslices":   "/apis/discovery.k8s.io/v1/endpointslices?limit=5000",
		"ciliumnodes":      "/apis/cilium.io/v2/ciliumnodes",
		"ciliumendpoints":  "/apis/cilium.io/v2/ciliumendpoints?limit=20000",
		"podcidrledgers":   "/apis/weft.dev/v1alpha1/podcidrledgers",
		"reservedcidrs":    "/apis/weft.dev/v1alpha1/reservedcidrs",
		"ciliumpodippools": "/apis/cilium.io/v2alpha1/ciliumpodippools",
		"config":           "/api/v1/namespaces/" + ns + "/configmaps/cilium-config",
		"version":          "/version",
	} {
		g.Go(func() error {
			b, err := f.api.Raw(ctx, at, maxItem)
			ar.add("kubernetes/"+name+".json", redactJSON(b), err)
			return nil
		})
	}
	g.Go(func() error {
		f.collectOperator(ctx, ar)
		return nil
	})
	for _, ag := range f.agents {
		g.Go(func() error {
			dir := path.Join("nodes", ag.node)
			f.collectLogs(ctx, ar, dir, ag)
			if err := f.collectNode(ctx, ar, dir, ag); err != nil {
				ar.add(path.Join(dir, "sysdump"), nil, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// operatorSelector finds the operator's pods.
const operatorSelector = "name=cilium-operator," + weftSelector

// collectOperator gathers what the operators logged.
func (f *fleet) collectOperator(ctx context.Context, ar *archive) {
	var pods corev1.PodList
	at := "/api/v1/namespaces/" + f.app.opts.namespace + "/pods"
	if err := f.api.Get(ctx, at+"?labelSelector="+url.QueryEscape(operatorSelector), &pods); err != nil {
		ar.add("operator", nil, err)
		return
	}
	for _, p := range pods.Items {
		f.collectPod(ctx, ar, path.Join("operator", p.Name), p.Name, "cilium-operator", "operator")
	}
}

func (f *fleet) collectLogs(ctx context.Context, ar *archive, dir string, ag agent) {
	f.collectPod(ctx, ar, dir, ag.pod, agentContainer, "agent")
}

// collectPod gathers what a container logged, and what it did before its last restart.
func (f *fleet) collectPod(ctx context.Context, ar *archive, dir, pod, container, name string) {
	for file, previous := range map[string]string{name + ".log": "false", name + "-previous.log": "true"} {
		q := url.Values{"container": {container}, "previous": {previous}, "tailLines": {"20000"}, "limitBytes": {strconv.Itoa(maxItem)}}
		b, err := f.api.Raw(ctx, "/api/v1/namespaces/"+f.app.opts.namespace+"/pods/"+pod+"/log?"+q.Encode(), maxItem)
		if err != nil && previous == "true" {
			continue // it has not been restarted
		}
		ar.add(path.Join(dir, file), []byte(redactText(string(b))), err)
	}
}

// collectNode has the node collect for itself, as one stream.
func (f *fleet) collectNode(ctx context.Context, ar *archive, dir string, ag agent) error {
	if ag.why != "" {
		return errors.New(ag.why)
	}
	r, w := io.Pipe()
	ended := make(chan error, 1)
	stderr := &boundedBuffer{limit: 64 << 10}
	go func() {
		err := f.exec(ctx, ag, []string{"sysdump", "-f", "-", "--timeout", "60s"}, nil, w, stderr)
		_ = w.CloseWithError(io.EOF)
		ended <- err
	}()
	merr := ar.merge(dir, r)
	_ = r.CloseWithError(io.ErrClosedPipe)
	err := <-ended
	if msg := lastLine(stderr.String()); err != nil && msg != "" {
		err = errors.New(msg)
	}
	return errors.Join(merr, err)
}
