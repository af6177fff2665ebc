// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/kubeproxy"
	"github.com/weft-net/weft/internal/rpc"
)

// TestKubeProxyComponent guards against two that serve without a word, against
// rules of a kube-proxy that ended and nobody names, and against a search at each
// question.
func TestKubeProxyComponent(t *testing.T) {
	now := time.Now()
	var life *kubeproxy.Life
	var left []kubeproxy.Object
	var findErr error
	searches := 0
	k := newKubeProxy(false, false, false)
	k.now = func() time.Time { return now }
	k.running = func(context.Context) (kubeproxy.Life, bool) {
		if life == nil {
			return kubeproxy.Life{}, false
		}
		return *life, true
	}
	k.find = func(context.Context) ([]kubeproxy.Object, error) { searches++; return left, findErr }
	want := func(state rpc.State, searched int, words ...string) {
		t.Helper()
		c := k.Component(context.Background())
		if c.State != state || searches != searched {
			t.Errorf("%s %q after %d searches, want %s after %d", c.State, c.Message, searches, state, searched)
		}
		for _, w := range words {
			if !strings.Contains(c.Message+strings.Join(c.Details, "\n"), w) {
				t.Errorf("%q, %q does not say %q", c.Message, c.Details, w)
			}
		}
		now = now.Add(kubeProxyFresh)
	}

	life = &kubeproxy.Life{Mode: "iptables"}
	want(rpc.StateOK, 0, "in mode iptables")
	k.sockets = true
	want(rpc.StateOK, 0, "in mode iptables", "and Weft beside it", "socketLB.enabled")
	life.Trouble = "its health check answers 503"
	want(rpc.StateWarning, 0, "503")

	life = nil
	want(rpc.StateWarning, 1, "not running", "only for connections that begin at a socket")
	left = []kubeproxy.Object{{Kind: kubeproxy.KindChain}, {Kind: kubeproxy.KindChain}, {Kind: kubeproxy.KindTable}}
	for range int(leftoversFresh/kubeProxyFresh) - 1 {
		want(rpc.StateWarning, 1, "not running")
	}
	findErr = errors.New("nft: not found")
	want(rpc.StateWarning, 2, "2 chains, 1 table", "`weft kube-proxy cleanup`", "nft: not found")

	// One that ran in between leaves something else.
	life = &kubeproxy.Life{Mode: "nftables"}
	want(rpc.StateOK, 2, "in mode nftables")
	life, left, findErr = nil, nil, nil
	k.sockets = false
	want(rpc.StateWarning, 3, "Services have no addresses", "kubeProxyReplacement=true")

	k.sockets, k.outside = true, true
	want(rpc.StateOK, 3, "not running", "Services are Weft's")
	life = &kubeproxy.Life{Mode: "nftables"}
	want(rpc.StateOK, 3, "in mode nftables", "`weft kube-proxy cleanup`")
	k.replace = true
	want(rpc.StateWarning, 3, "in mode nftables", "which is to replace it", "delete daemonset kube-proxy")
	life, left = nil, []kubeproxy.Object{{Kind: kubeproxy.KindTable}}
	want(rpc.StateWarning, 4, "1 table", "`weft kube-proxy cleanup`")
}
