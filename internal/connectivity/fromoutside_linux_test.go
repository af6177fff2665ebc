// SPDX-License-Identifier: Apache-2.0

package connectivity_test

import (
	"context"
	"encoding/json"
	"io"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/connectivity"
)

// loopCluster is a liveCluster whose nodes have addresses of the loopback
// device, and whose pods really try the host outside: from 127.0.0.1.
type loopCluster struct {
	*liveCluster
	node1 string // n1's address
}

func (l *loopCluster) Get(ctx context.Context, path string, out any) error {
	var text string
	switch path {
	case "/api/v1/nodes":
		text = `{"items":[
			{"metadata":{"name":"n1"},"spec":{"podCIDRs":["10.0.1.0/24"]},"status":{"addresses":[{"type":"InternalIP","address":"` + l.node1 + `"}]}},
			{"metadata":{"name":"n2"},"spec":{"podCIDRs":["10.0.2.0/24"]},"status":{"addresses":[{"type":"InternalIP","address":"127.0.0.3"}]}}]}`
	case "/api/v1/namespaces/weft/configmaps/cilium-config":
		text = `{"data":{"routing-mode":"native","enable-bpf-masquerade":"true","enable-ipv4-masquerade":"true","enable-ip-masq-agent":"true"}}`
	case "/api/v1/namespaces/weft/configmaps/ip-masq-agent":
		text = `{"data":{"config":"nonMasqueradeCIDRs: [192.0.2.0/24]\nmasqLinkLocal: true\nmasqLinkLocalIPv6: true\n"}}`
	default:
		return l.liveCluster.Get(ctx, path, out)
	}
	return json.Unmarshal([]byte(text), out)
}

func (l *loopCluster) Exec(ctx context.Context, pod string, command []string, in io.Reader, out, errOut io.Writer) error {
	var plan connectivity.ProbePlan
	if err := json.NewDecoder(in).Decode(&plan); err != nil {
		return err
	}
	enc := json.NewEncoder(out)
	var tried []connectivity.Cell
	for _, c := range plan.Cells {
		if c.Path == connectivity.PodToOutside {
			tried = append(tried, c)
		} else if err := enc.Encode(connectivity.Result{ID: c.ID}); err != nil {
			return err
		}
	}
	plan.Cells, plan.Wait = tried, nil
	return connectivity.Probe(ctx, &plan, func(r connectivity.Result) error { return enc.Encode(r) })
}

// TestFromOutside guards against nodes that are not tried from outside, and
// against sources that are wrong in any protocol and pass: pods should
// come from their nodes' addresses, and come from 127.0.0.1.
func TestFromOutside(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: sends and reads ICMP")
	}
	token := connectivity.NewToken()
	opts := runOptions()
	opts.Port, opts.System = 14747, "weft"
	opts.Outside = connectivity.OutsideOptions{Here: true, Token: &token}
	opts.Filter.Cells = []string{"*outside*"}
	opts.Retries = 2

	if _, err := connectivity.Run(t.Context(), &loopCluster{&liveCluster{}, "127.0.0.1"}, opts, silent{}); err == nil || !strings.Contains(err.Error(), "is an address of node n1") {
		t.Errorf("on a node: %v", err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { // n1 answers, n2 does not
		ended <- connectivity.Serve(ctx, connectivity.ServeConfig{Addrs: []netip.Addr{netip.MustParseAddr("127.0.0.2")}, Port: opts.Port, Token: token}, func() { close(ready) })
	}()
	<-ready
	l := &loopCluster{&liveCluster{}, "127.0.0.2"}
	rep, err := connectivity.Run(t.Context(), l, opts, silent{})
	cancel()
	if serr := <-ended; err != nil || serr != nil {
		t.Fatal(err, serr)
	}
	if got := rep.Network.String(); got != "native routing, masquerade of IPv4 only, but not to 192.0.2.0/24" {
		t.Error(got)
	}
	ran := 0
	for _, row := range rep.Rows {
		if row.Family == connectivity.IPv6 {
			continue
		}
		ran++
		wrong := row.Path == connectivity.PodToOutside && (row.Proto != connectivity.ICMP || row.Size != connectivity.OneByte)
		silentNode := row.To.Node == "n2" && row.Proto != connectivity.ICMP // whose kernel answers echo requests
		switch {
		case wrong && !strings.Contains(row.Error, "arrived from 127.0.0.1; it should come from an address of node "+row.From.Node):
			t.Errorf("%s %s: %s %q", row.Pair(), row.Name(), row.Outcome, row.Error)
		case !wrong && (row.Outcome == connectivity.Failed) != silentNode:
			t.Errorf("%s %s: %s %q", row.Pair(), row.Name(), row.Outcome, row.Error)
		}
	}
	if ran != 2*2*12 {
		t.Errorf("%d cells of IPv4, want 48", ran)
	}
}
