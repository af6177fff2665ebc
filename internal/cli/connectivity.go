// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/cli/kube"
	"github.com/weft-net/weft/internal/connectivity"
	"github.com/weft-net/weft/internal/rpc"
	"github.com/weft-net/weft/internal/table"
)

const testLong = `Sends bytes along every path of the network and compares what comes back:
pod to pod on one node and on two, pods to their own and to other nodes, nodes to
pods, a pod to itself through a Service, pods to the API server and to DNS, pods to
a host outside the cluster and that host to the nodes; IPv4 and IPv6; TCP, UDP and ICMP; 1 byte, a full packet, one byte more than that
(two fragments) and 64 KB.

From a laptop it makes the namespace weft-connectivity with three pods on each node
and removes it again, also on ^C. In an agent's container, where no pods can be made,
it tests from that node to the health endpoints of all nodes, the API server and DNS.

Nothing leaves the cluster unless a host outside is given. --from-outside says that
this machine is one: it answers the pods and tries the nodes itself, and checks which
source address arrives: the pod's own, or its node's where the cluster masquerades.
--external-target names another host: with the token of a ` + "`weft connectivity listen`" + `
that runs on it the same is checked from the pods; without, it only has to answer
echo requests and, where a port is given, to accept connections.

Nothing is retried unless asked, so that loss shows. It ends with
"connectivity: PASSED/RUN passed" and exit code 0 only if all that ran passed.`

type testFlags struct {
	cells, families []string
	junit           string
	targets         []string
	token           string
	opts            connectivity.Options
}

func (a *app) connectivityCommand() *cobra.Command {
	var f testFlags
	test := &cobra.Command{
		Use: "test", Short: "Test the network along every path", Long: testLong, Args: cobra.NoArgs,
		Example: "  weft connectivity test\n  weft connectivity test --node n1,n2 --family ipv6 --cells 'pod-to-pod-*,*/*/UDP/64KB'\n  weft connectivity test -o json --junit report.xml\n  weft connectivity test --from-outside\n  weft connectivity test --external-target 192.0.2.7:443,[2001:db8::7]:443",
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.connectivityTest(cmd.Context(), f) },
	}
	fl := test.Flags()
	fl.StringSliceVar(&f.cells, "cells", nil, "only these: patterns on the path (pod-to-pod-*) or on path/family/protocol/size (*/IPv6/UDP/64KB)")
	fl.StringSliceVar(&f.families, "family", nil, "only these: ipv4, ipv6")
	fl.StringVar(&f.junit, "junit", "", "also write a JUnit report to this file")
	fl.DurationVar(&f.opts.CellTimeout, "cell-timeout", 5*time.Second, "how long one exchange may take")
	fl.IntVar(&f.opts.Retries, "retries", 0, "try a failed exchange so many times more")
	fl.DurationVar(&f.opts.Timeout, "timeout", 5*time.Minute, "how long the whole test may take, without its clean-up")
	fl.Uint16Var(&f.opts.Port, "port", connectivity.DefaultPort, "port of the echo servers, in pods and on the nodes' addresses")
	fl.BoolVar(&f.opts.Keep, "keep", false, "leave namespace and pods for a look")
	fl.BoolVar(&f.opts.Reuse, "reuse", false, "use the pods that a run with --keep left, and leave them: nothing has to start")
	test.MarkFlagsMutuallyExclusive("keep", "reuse")
	f.outsideFlags(test)

	serve := &cobra.Command{
		Use: "serve", Short: "Echo for a test (runs in its pods)", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.connectivityServe(cmd.Context()) },
	}
	probe := &cobra.Command{
		Use: "probe", Short: "Run cells of a test (runs in its pods)", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.connectivityProbe(cmd.Context()) },
	}
	return group("connectivity", "Test the network", test, a.connectivityMTU(), a.connectivityListen(), serve, probe)
}

func (a *app) connectivityServe(ctx context.Context) error {
	token, err := connectivity.ParseToken(a.env(connectivity.EnvToken))
	if err != nil {
		return fmt.Errorf("%s: %w", connectivity.EnvToken, err)
	}
	port, err := strconv.ParseUint(a.env(connectivity.EnvPort), 10, 16)
	if err != nil {
		return fmt.Errorf("%s: %w", connectivity.EnvPort, err)
	}
	cfg := connectivity.ServeConfig{Port: uint16(port), Token: token}
	for s := range strings.SplitSeq(a.env(connectivity.EnvAddrs), ",") {
		addr, err := netip.ParseAddr(s)
		if err != nil {
			return fmt.Errorf("%s: %w", connectivity.EnvAddrs, err)
		}
		cfg.Addrs = append(cfg.Addrs, addr)
	}
	return connectivity.Serve(ctx, cfg, nil)
}

func (a *app) connectivityProbe(ctx context.Context) error {
	var plan connectivity.ProbePlan
	if err := json.NewDecoder(a.In).Decode(&plan); err != nil {
		return fmt.Errorf("plan on the standard input: %w", err)
	}
	enc := json.NewEncoder(a.Out)
	return connectivity.Probe(ctx, &plan, func(r connectivity.Result) error { return enc.Encode(r) })
}

func (f *testFlags) filter() (connectivity.Filter, error) {
	out := connectivity.Filter{Cells: f.cells}
	for _, s := range f.families {
		switch strings.ToLower(s) {
		case "ipv4", "4":
			out.Families = append(out.Families, connectivity.IPv4)
		case "ipv6", "6":
			out.Families = append(out.Families, connectivity.IPv6)
		default:
			return out, fmt.Errorf("--family %q: give ipv4 or ipv6", s)
		}
	}
	return out, out.Check()
}

func (a *app) connectivityTest(ctx context.Context, f testFlags) error {
	var err error
	if f.opts.Filter, err = f.filter(); err != nil {
		return err
	}
	if err := f.outside(ctx, a.onNode()); err != nil {
		return err
	}
	var junit *os.File
	if f.junit != "" { // a file that cannot be written shows before the test, not after
		if junit, err = os.Create(f.junit); err != nil {
			return fmt.Errorf("--junit: %w", err)
		}
		defer junit.Close()
	}
	show := newProgress(a.Err)
	var rep *connectivity.Report
	if a.onNode() {
		rep, err = a.testFromNode(ctx, f.opts, show)
	} else {
		rep, err = a.testFromCluster(ctx, f.opts, show)
	}
	show.end()
	if err != nil {
		return err
	}
	if junit != nil {
		if err := errors.Join(rep.WriteJUnit(junit), junit.Close()); err != nil {
			return fmt.Errorf("--junit: %w", err)
		}
	}
	if err := a.printTest(rep); err != nil {
		return err
	}
	if rep.Passed+rep.Failed == 0 {
		return errors.New("connectivity: nothing was left to run; see --cells, --family and --node")
	}
	if !rep.OK() {
		return &exitError{code: ExitFailing}
	}
	return nil
}

func (a *app) printTest(rep *connectivity.Report) error {
	if a.opts.output != "table" {
		return printObject(a.Out, a.opts.output, rep)
	}
	if err := rep.WriteText(a.Out); err != nil {
		return err
	}
	_, err := fmt.Fprintf(a.Out, "\n%s\n", rep.Summary())
	return err
}

// testFromNode tests from the agent's container.
func (a *app) testFromNode(ctx context.Context, opts connectivity.Options, show *progress) (*connectivity.Report, error) {
	c := rpc.NewClient(a.paths.socket)
	defer c.Close()
	nodes, err := rpc.Fetch[[]table.Node](ctx, c, rpc.PathNodes)
	if err != nil {
		return nil, fmt.Errorf("nodes to test: %w; to test without this node's agent, run it where kubectl works", err)
	}
	return connectivity.RunLocal(ctx, connectivity.LocalTopology{
		Nodes:     nodes,
		APIServer: a.apiServerHere(ctx),
		DNS:       connectivity.ClusterDNS("/etc/resolv.conf"),
	}, opts, show)
}

// apiServerHere is the API server's address as pods are given it.
func (a *app) apiServerHere(ctx context.Context) connectivity.Service {
	s := connectivity.Service{Name: "kubernetes"}
	host, port := a.env("KUBERNETES_SERVICE_HOST"), a.env("KUBERNETES_SERVICE_PORT")
	n, err := strconv.ParseUint(port, 10, 16)
	if host == "" || err != nil {
		s.Why = "KUBERNETES_SERVICE_HOST and _PORT are not set here"
		return s
	}
	s.Port = uint16(n)
	var r net.Resolver
	s.Addrs, err = r.LookupNetIP(ctx, "ip", host)
	for i := range s.Addrs {
		s.Addrs[i] = s.Addrs[i].Unmap()
	}
	if err != nil {
		s.Why = "API server " + host + ": " + err.Error()
	}
	return s
}

// testFromCluster tests from pods that it makes, and asks every agent before
// and after.
func (a *app) testFromCluster(ctx context.Context, opts connectivity.Options, show *progress) (*connectivity.Report, error) {
	f, err := a.fleet(ctx)
	if err != nil {
		return nil, err
	}
	if opts.Reuse && len(a.opts.nodes) > 0 {
		return nil, errors.New("--reuse tests the nodes of the run before: leave out --node")
	}
	if f.image == "" {
		return nil, fmt.Errorf("daemonset %s: no container %s to take the image from", daemonSetName, agentContainer)
	}
	opts.Image, opts.Nodes, opts.System = f.image, a.opts.nodes, a.opts.namespace
	before := f.counters(ctx)
	rep, err := connectivity.Run(ctx, testAPI{f.api}, opts, show)
	if err != nil {
		return nil, err
	}
	if len(opts.Filter.Cells) == 0 && len(opts.Filter.Families) == 0 {
		f.judgeAgents(ctx, rep, before)
	}
	return rep, nil
}

// testAPI fits a cluster to what the test needs.
type testAPI struct{ cluster }

func (t testAPI) Exec(ctx context.Context, pod string, command []string, in io.Reader, out, errOut io.Writer) error {
	return t.cluster.Exec(ctx, kube.ExecRequest{
		Namespace: connectivity.Namespace, Pod: pod, Container: "probe", Command: command,
		Stdin: in, Stdout: out, Stderr: errOut,
	})
}

func (testAPI) Gone(err error) bool { return kube.IsNotFound(err) }
