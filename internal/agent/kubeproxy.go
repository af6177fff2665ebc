// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"sync"
	"time"

	"github.com/weft-net/weft/internal/kubeproxy"
	"github.com/weft-net/weft/internal/rpc"
)

// kubeProxy tells whether kube-proxy runs on this node, and what it left if not.
type kubeProxy struct {
	sockets bool // Weft serves what begins at a socket
	outside bool // and what comes from outside
	replace bool // kubeProxyReplacement: it is not to run
	running func(context.Context) (kubeproxy.Life, bool)
	find    func(context.Context) ([]kubeproxy.Object, error)
	now     func() time.Time

	mu      sync.Mutex
	at      time.Time // of last
	last    rpc.Component
	foundAt time.Time // of found
	found   []kubeproxy.Object
	findErr error
}

const (
	kubeProxyFresh = 10 * time.Second
	// leftoversFresh is for how long what was found counts: rules of 10,000
	// services take a second to read.
	leftoversFresh   = time.Minute
	leftoversTimeout = 10 * time.Second
)

func newKubeProxy(sockets, outside, replace bool) *kubeProxy {
	return &kubeProxy{sockets: sockets, outside: outside, replace: replace, running: kubeproxy.Running, find: kubeproxy.Find, now: time.Now}
}

// Component reports who serves Services on this node: that both do, that nobody
// does, or that rules of a kube-proxy that ended still do.
func (k *kubeProxy) Component(ctx context.Context) rpc.Component {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.now()
	if now.Sub(k.at) < kubeProxyFresh {
		return k.last
	}
	c := rpc.Component{Name: "KubeProxy", State: rpc.StateOK}
	if life, ok := k.running(ctx); ok {
		k.runs(life, &c)
	} else {
		k.absent(ctx, now, &c)
	}
	k.at, k.last = now, c
	return c
}

func (k *kubeProxy) runs(life kubeproxy.Life, c *rpc.Component) {
	k.foundAt = time.Time{} // what it makes from now on it leaves
	c.Message = "kube-proxy runs, mode unknown"
	if life.Mode != "" {
		c.Message = "kube-proxy runs in mode " + life.Mode
	}
	switch {
	case k.replace:
		c.State = rpc.StateWarning
		c.Message += ", and Weft beside it, which is to replace it (kubeProxyReplacement=true): remove kube-proxy (`kubectl -n kube-system delete daemonset kube-proxy`), then what it leaves with `weft kube-proxy cleanup`"
	case k.outside:
		c.Message += ", and Weft beside it, which serves all but SCTP of the node itself (nodePort.enabled): remove kube-proxy, then what it leaves with `weft kube-proxy cleanup`"
	case k.sockets:
		c.Message += ", and Weft beside it: Weft serves connections that begin at a socket (socketLB.enabled), kube-proxy all others"
	}
	if life.Trouble != "" {
		c.State = rpc.StateWarning
		c.Message += "; " + life.Trouble + ": see its log"
	}
}

func (k *kubeProxy) absent(ctx context.Context, now time.Time, c *rpc.Component) {
	if k.foundAt.IsZero() || now.Sub(k.foundAt) >= leftoversFresh {
		ctx, cancel := context.WithTimeout(ctx, leftoversTimeout)
		k.found, k.findErr = k.find(ctx)
		cancel()
		k.foundAt = now
	}
	c.State = rpc.StateWarning
	c.Message = "not running (no answer on 127.0.0.1:10249 and :10256)"
	if k.outside && len(k.found) == 0 {
		c.State = rpc.StateOK
	}
	served := "Services have no addresses on this node"
	if k.sockets {
		served = "Services have addresses only for connections that begin at a socket of this node (socketLB.enabled)"
	}
	if len(k.found) > 0 {
		c.Message += ", but what it left still translates, to backends of then: " + kubeproxy.Count(k.found) +
			"; start it again, or remove that with `weft kube-proxy cleanup`"
	} else if k.outside {
		c.Message += ": Services are Weft's, but for SCTP of the node itself"
	} else {
		c.Message += ": " + served + ": set kubeProxyReplacement=true, or run kube-proxy"
	}
	if k.findErr != nil {
		c.Details = append(c.Details, "not all could be searched for what kube-proxy left: "+k.findErr.Error())
	}
}
