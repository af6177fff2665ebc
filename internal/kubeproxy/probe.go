// SPDX-License-Identifier: Apache-2.0

package kubeproxy

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Where kube-proxy answers unless it was told otherwise (metricsBindAddress,
// healthzBindAddress).
const (
	modeURL   = "http://127.0.0.1:10249/proxyMode"
	healthURL = "http://127.0.0.1:10256/healthz"
)

// Life is what is known of a kube-proxy that runs.
type Life struct {
	Mode    string // iptables, nftables, ipvs; "" if it does not say
	Trouble string // what it says about its own health, "" for nothing
	Sign    string // how it is known that it runs
}

// Running looks for a kube-proxy in this network namespace: first for its answers
// on loopback, then for a process of its name. A container that does not see the
// node's processes knows by the answers alone.
func Running(ctx context.Context) (Life, bool) {
	// Loopback answers at once or not at all.
	client := &http.Client{Timeout: 300 * time.Millisecond, Transport: &http.Transport{DisableKeepAlives: true}}
	if code, body, err := get(ctx, client, modeURL); err == nil && code == http.StatusOK {
		return Life{Mode: body, Sign: "it answers on 127.0.0.1:10249"}, true
	}
	if code, _, err := get(ctx, client, healthURL); err == nil {
		l := Life{Sign: "it answers on 127.0.0.1:10256"}
		if code != http.StatusOK {
			l.Trouble = fmt.Sprintf("its health check answers %d", code)
		}
		return l, true
	}
	if pid := process("/proc"); pid != "" {
		return Life{Sign: "process " + pid}, true
	}
	return Life{}, false
}

func get(ctx context.Context, client *http.Client, url string) (int, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 256))
	return resp.StatusCode, strings.TrimSpace(string(b)), err
}

// process returns the id of a process named kube-proxy in the network namespace
// of this thread, "" for none. Another namespace is another node.
func process(proc string) string {
	own, err := os.Readlink(filepath.Join(proc, "thread-self/ns/net"))
	if err != nil {
		return ""
	}
	comms, err := filepath.Glob(filepath.Join(proc, "[0-9]*/comm"))
	if err != nil {
		return ""
	}
	for _, c := range comms {
		dir := filepath.Dir(c)
		if b, err := os.ReadFile(c); err != nil || strings.TrimSpace(string(b)) != "kube-proxy" {
			continue
		}
		if ns, err := os.Readlink(filepath.Join(dir, "ns/net")); err == nil && ns == own {
			return filepath.Base(dir)
		}
	}
	return ""
}
