// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/weft-net/weft/test/bench/load"
)

// patience is how long kube-proxy may take for 10,000 Services.
const patience = 4 * time.Minute

// kubeProxy runs on a node.
type kubeProxy struct {
	*node
	cmd *exec.Cmd
}

// onNFTables is for how many Services iptables are those on nf_tables: with 10,000
// of 10 endpoints, iptables-nft-restore takes longer than this benchmark may.
const onNFTables = 1000

// startProxy starts the real kube-proxy.
func startProxy(n *node, mode string) (*kubeProxy, error) {
	bin, err := kubeBinary("kube-proxy")
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(apiDir, n.name)
	kubeconfig, config := filepath.Join(dir, "kubeconfig"), filepath.Join(dir, "config")
	err = writeFiles(map[string]string{
		kubeconfig: fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],
			"clusters":[{"name":"c","cluster":{"server":%q,"insecure-skip-tls-verify":true}}],"users":[{"name":"u","user":{"token":%q}}]}`, apiURL, token),
		// What conntrack may hold cannot be set outside of the first namespace.
		config: fmt.Sprintf(`{"apiVersion":"kubeproxy.config.k8s.io/v1alpha1","kind":"KubeProxyConfiguration","mode":%q,"clusterCIDR":%q,
			"clientConnection":{"kubeconfig":%q,"qps":100,"burst":200},"conntrack":{"maxPerCore":0,"min":0,"tcpEstablishedTimeout":"0s","tcpCloseWaitTimeout":"0s"}}`,
			mode, podRange, kubeconfig),
	})
	if err != nil {
		return nil, err
	}
	variant := "-nft"
	if n.services > onNFTables {
		variant = "-legacy"
	}
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, verb := range []string{"", "-save", "-restore"} {
			to, err := exec.LookPath(family + variant + verb)
			if err != nil {
				return nil, fmt.Errorf("%w: apt-get install iptables", err)
			}
			if err := os.Symlink(to, filepath.Join(dir, family+verb)); err != nil {
				return nil, err
			}
		}
	}
	p := &kubeProxy{node: n, cmd: exec.Command(bin, "--config="+config, "--hostname-override="+nodeName)}
	p.cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
	return p, n.In(func() error { return daemon(n.name, p.cmd) })
}

// proxied brings up a node of kube-proxy's, and returns how long it took from its
// start until connections go through. With measure, if not nil, it is measured
// before it ends.
func proxied(n *node, objs *objects, mode string, measure func(*kubeProxy) error) (took time.Duration, err error) {
	if err := n.wire(); err != nil {
		return 0, err
	}
	if err := objs.point(n.podIP); err != nil {
		return 0, err
	}
	start := time.Now()
	p, err := startProxy(n, mode)
	if err != nil {
		return 0, err
	}
	if err := n.answers(objs, patience); err != nil {
		return 0, fmt.Errorf("%w; kube-proxy said:\n%s", err, said(n.name))
	}
	took = time.Since(start)
	if measure != nil {
		if err := measure(p); err != nil {
			return 0, err
		}
	}
	return took, stop(p.cmd)
}

// answers waits until the target is reached from a pod.
func (n *node) answers(objs *objects, within time.Duration) error {
	_, err := n.pods.do(order{Netns: n.client.Path, To: objs.target, Until: true, For: within, Want: -1})
	return err
}

// position says how many rules of iptables come before that of the target's
// cluster IP, and how many there are: they are gone through one by one.
func (p *kubeProxy) position(objs *objects) (before, all int, err error) {
	var out []byte
	err = p.In(func() (err error) {
		cmd := exec.Command("iptables-save", "-t", "nat")
		cmd.Env, cmd.Path = p.cmd.Env, filepath.Join(apiDir, p.name, "iptables-save")
		out, err = cmd.Output()
		return err
	})
	before = -1
	for line := range strings.Lines(string(out)) {
		if !strings.HasPrefix(line, "-A KUBE-SERVICES ") {
			continue
		}
		if strings.Contains(line, " -d "+objs.target.Addr().String()+"/32 ") {
			before = all
		}
		all++
	}
	if err == nil && before < 0 {
		err = fmt.Errorf("%s has no rule", objs.target)
	}
	return before, all, err
}

func (p *kubeProxy) rss() (float64, error) { return load.RSS(p.cmd.Process.Pid) }
