// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/weft-net/weft/internal/rpc"
)

// kubeProxy asks kube-proxy, which serves its mode and its health on this node
// (kube-proxy's metricsBindAddress and healthzBindAddress, by default
// 127.0.0.1:10249 and :10256).
type kubeProxy struct {
	client *http.Client

	mu   sync.Mutex
	at   time.Time
	last rpc.Component
}

const kubeProxyFresh = 10 * time.Second

func newKubeProxy() *kubeProxy {
	return &kubeProxy{client: &http.Client{Timeout: 300 * time.Millisecond, Transport: &http.Transport{DisableKeepAlives: true}}}
}

// Component reports the mode of kube-proxy. Services work through it, so that
// its absence is worth a look.
func (k *kubeProxy) Component(ctx context.Context) rpc.Component {
	k.mu.Lock()
	defer k.mu.Unlock()
	if time.Since(k.at) < kubeProxyFresh {
		return k.last
	}
	c := rpc.Component{Name: "KubeProxy", State: rpc.StateOK}
	mode, ok := k.get(ctx, "http://127.0.0.1:10249/proxyMode")
	switch {
	case ok:
		c.Message = "kube-proxy runs in mode " + mode
	default:
		if _, ok := k.get(ctx, "http://127.0.0.1:10256/healthz"); ok {
			c.Message = "kube-proxy runs, mode unknown"
			break
		}
		c.State = rpc.StateWarning
		c.Message = "not running (no answer on 127.0.0.1:10249 and :10256): Services have no addresses on this node; Weft does not replace kube-proxy yet"
	}
	k.at, k.last = time.Now(), c
	return c
}

func (k *kubeProxy) get(ctx context.Context, url string) (string, bool) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", false
	}
	resp, err := k.client.Do(req)
	if err != nil {
		return "", false
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 256))
	return strings.TrimSpace(string(b)), err == nil && resp.StatusCode == http.StatusOK
}
