// SPDX-License-Identifier: Apache-2.0

//go:build linux

package kubeproxy_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/internal/datapath/link/nstest"
	"github.com/weft-net/weft/internal/k8s/apiservertest"
	"github.com/weft-net/weft/internal/kubeproxy"
)

const (
	nodeAddr  = "192.168.77.1"
	clusterIP = "10.96.0.77"
)

// cluster is an API server with one node and a Service of each type that makes
// chains of its own.
func cluster(t *testing.T) *apiservertest.Server {
	t.Helper()
	api := apiservertest.Start(t)
	api.Do(t, http.MethodPost, "/api/v1/nodes", `{"metadata":{"name":"n1"}}`, nil)
	api.Do(t, http.MethodPatch, "/api/v1/nodes/n1/status", `{"status":{"addresses":[{"type":"InternalIP","address":"`+nodeAddr+`"}]}}`, nil)
	const ns = "/api/v1/namespaces/default/services"
	api.Do(t, http.MethodPost, ns, `{"metadata":{"name":"web"},"spec":{"clusterIP":"`+clusterIP+`","ports":[{"port":80}]}}`, nil)
	api.Do(t, http.MethodPost, ns, `{"metadata":{"name":"np"},"spec":{"type":"NodePort","externalTrafficPolicy":"Local","ports":[{"port":80,"nodePort":30080}]}}`, nil)
	api.Do(t, http.MethodPost, ns, `{"metadata":{"name":"none"},"spec":{"ports":[{"port":81}]}}`, nil)
	api.Do(t, http.MethodPost, ns, `{"metadata":{"name":"lb"},"spec":{"type":"LoadBalancer","loadBalancerSourceRanges":["10.0.0.0/8"],"sessionAffinity":"ClientIP","ports":[{"port":80}]}}`, nil)
	api.Do(t, http.MethodPatch, ns+"/lb/status", `{"status":{"loadBalancer":{"ingress":[{"ip":"203.0.113.7"}]}}}`, nil)
	return api
}

// endpoints gives the Services a backend at the port.
func endpoints(t *testing.T, api *apiservertest.Server, port int) {
	t.Helper()
	for _, svc := range []string{"web", "np", "lb"} {
		api.Do(t, http.MethodPost, "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", fmt.Sprintf(
			`{"metadata":{"name":%q,"labels":{"kubernetes.io/service-name":%q}},"addressType":"IPv4","ports":[{"name":"","port":%d,"protocol":"TCP"}],
			"endpoints":[{"addresses":[%q],"nodeName":"n1","conditions":{"ready":true}}]}`, svc, svc, port, nodeAddr), nil)
	}
}

// startProxy runs a real kube-proxy whose iptables are of the variant, until the
// test ends or kills it.
func startProxy(t *testing.T, api *apiservertest.Server, mode, variant string) *exec.Cmd {
	t.Helper()
	bin, dir := apiservertest.Binary(t, "kube-proxy"), t.TempDir()
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, verb := range []string{"", "-save", "-restore"} {
			to, err := exec.LookPath(family + "-" + variant + verb)
			if err != nil {
				t.Skipf("%s-%s%s is not installed", family, variant, verb)
			}
			if err := os.Symlink(to, filepath.Join(dir, family+verb)); err != nil {
				t.Fatal(err)
			}
		}
	}
	kubeconfig, config := filepath.Join(dir, "kubeconfig"), filepath.Join(dir, "config")
	for file, text := range map[string]string{
		kubeconfig: fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],
			"clusters":[{"name":"c","cluster":{"server":%q,"insecure-skip-tls-verify":true}}],"users":[{"name":"u","user":{"token":%q}}]}`, api.URL, apiservertest.Token),
		// What conntrack may hold cannot be set outside of the first namespace.
		config: fmt.Sprintf(`{"apiVersion":"kubeproxy.config.k8s.io/v1alpha1","kind":"KubeProxyConfiguration","mode":%q,"clusterCIDR":"10.1.0.0/16",
			"clientConnection":{"kubeconfig":%q},"conntrack":{"maxPerCore":0,"min":0,"tcpEstablishedTimeout":"0s","tcpCloseWaitTimeout":"0s"}}`, mode, kubeconfig),
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, "--config="+config, "--hostname-override=n1")
	cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, end := make(chan error, 1), make(chan struct{})
	go func() {
		runtime.LockOSThread() // Pdeathsig is about the thread that starts the child
		started <- cmd.Start()
		<-end
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		close(end)
		if b, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("kube-proxy:\n%s", b[max(0, len(b)-4000):])
		}
		_ = log.Close()
	})
	return cmd
}

// eventually asks until it is so: another process cannot be watched.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(time.Minute)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("not within a minute: %s", what)
		case <-tick.C:
		}
	}
}

// backend echoes lines on a port of the node until the test ends.
func backend(t *testing.T) int {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", nodeAddr+":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for sc := bufio.NewScanner(c); sc.Scan(); {
					fmt.Fprintln(c, sc.Text())
				}
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

// echoes says whether a line comes back.
func echoes(c net.Conn, line string) bool {
	if err := c.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return false
	}
	fmt.Fprintln(c, line)
	sc := bufio.NewScanner(c)
	return sc.Scan() && sc.Text() == line
}

// everything is what all backends and nftables hold.
func everything(t *testing.T) string {
	t.Helper()
	var out strings.Builder
	for _, bin := range backends() {
		out.WriteString(bin + "\n" + saved(t, bin))
	}
	out.WriteString(tool(t, "", "nft", "list", "tables"))
	return out.String()
}

// neighbours are the others' rules beside a real kube-proxy: that takes all chains
// KUBE-SEP-* for its own, and fills KUBE-FIREWALL as the kubelet does.
func neighbours(bin string) string {
	rules := strings.ReplaceAll(others, "KUBE-SEP-SHORT", "KUBE-MINE")
	if strings.HasPrefix(bin, "iptables") {
		rules = strings.Replace(rules, "-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP",
			`-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment "block incoming localnet connections" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP`, 1)
	}
	return rules
}

// TestRealKubeProxy guards against anything that a real kube-proxy leaves when it
// is killed, against a running one that is not seen, and against connections
// through it that end with its rules.
func TestRealKubeProxy(t *testing.T) {
	nstest.Require(t)
	apiservertest.Binary(t, "kube-proxy")
	nstest.Bridge(t, "node", nodeAddr+"/24")
	br, err := netlink.LinkByName("node")
	if err != nil {
		t.Fatal(err)
	}
	// To services, and for the API server, which looks for its address by it.
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: br.Attrs().Index, Dst: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}}); err != nil {
		t.Fatal(err)
	}
	api := cluster(t)
	endpoints(t, api, backend(t))
	for _, c := range []struct{ mode, variant, want string }{
		{"iptables", "nft", "chain"},
		{"iptables", "legacy", "chain"},
		{"nftables", "nft", "2 tables"},
	} {
		t.Run(c.mode+"/"+c.variant, func(t *testing.T) {
			for _, bin := range backends() {
				restore(t, bin, neighbours(bin))
			}
			before := everything(t)
			proxy := startProxy(t, api, c.mode, c.variant)
			var conn net.Conn
			eventually(t, "a connection through "+clusterIP, func() bool {
				var err error
				conn, err = net.DialTimeout("tcp", clusterIP+":80", time.Second)
				return err == nil
			})
			defer conn.Close()
			if !echoes(conn, "with kube-proxy") {
				t.Fatal("nothing comes through it")
			}
			var life kubeproxy.Life
			eventually(t, "kube-proxy answers", func() (ok bool) {
				life, ok = kubeproxy.Running(context.Background())
				return ok && strings.Contains(life.Sign, "answers")
			})
			if life.Mode != c.mode {
				t.Errorf("it runs in mode %s, seen as %+v", c.mode, life)
			}
			if err := proxy.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = proxy.Wait()
			if l, ok := kubeproxy.Running(context.Background()); ok {
				t.Errorf("it was killed, but %+v", l)
			}
			if got := kubeproxy.Count(find(t)); !strings.Contains(got, c.want) {
				t.Errorf("it left %s, want %s", got, c.want)
			} else {
				t.Logf("it left %s", got)
			}
			wantRemoved(t)
			if after := everything(t); after != before {
				t.Errorf("before kube-proxy:\n%s\nafter its removal:\n%s", before, after)
			}
			if !echoes(conn, "without kube-proxy") {
				t.Error("a connection that kube-proxy had translated ended with its rules")
			}
			if c, err := net.DialTimeout("tcp", clusterIP+":80", 300*time.Millisecond); err == nil {
				_ = c.Close()
				t.Error("new connections are still translated")
			}
		})
	}
}
