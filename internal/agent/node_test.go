// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	ciliumv2 "github.com/weft-net/weft/api/cilium.io/v2"
	"github.com/weft-net/weft/internal/cni"
	"github.com/weft-net/weft/internal/health"
	"github.com/weft-net/weft/internal/k8s"
	"github.com/weft-net/weft/internal/k8s/apiservertest"
	"github.com/weft-net/weft/internal/rpc"
	"github.com/weft-net/weft/internal/table"
)

// inNode is set in a process that has network and mounts to itself.
const inNode = "WEFT_TEST_IN_NODE"

// node runs the test again in a process with a network and a mount namespace of
// its own, and returns false in the one without: what it makes in the kernel is
// gone with the process, however that ends.
func node(t *testing.T) bool {
	t.Helper()
	if os.Getenv(inNode) != "" {
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes namespaces and BPF maps")
	}
	most := patient(4 * time.Minute)
	ctx, cancel := context.WithTimeout(t.Context(), most)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v=true", "-test.timeout="+most.String(), fmt.Sprintf("-test.short=%t", testing.Short()))
	cmd.Env = append(os.Environ(), inNode+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	switch {
	case err != nil:
		t.Fatalf("%v\n%s", err, out)
	case strings.Contains(string(out), "--- SKIP: "+t.Name()+" "):
		t.Skipf("%s", out)
	}
	return false
}

// patient is d, how long a test waits at most, or more on a processor that is
// emulated, for which -short stands.
func patient(d time.Duration) time.Duration {
	if testing.Short() {
		return 6 * d
	}
	return d
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// newNode gives this process a node's devices, mounts and settings, and returns
// the options of an agent on it.
func newNode(t *testing.T, settings map[string]string) (InitOptions, string) {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	o := InitOptions{
		Options: Options{NodeName: "n1", Version: "test", Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Paths: Paths{
			Config: dir + "/config", Run: dir + "/run", BPF: dir + "/bpf/weft", CNIConf: dir + "/net.d", CNIBin: dir + "/bin",
			HealthNetns: dir + "/netns/weft-health", Credentials: dir + "/credentials", Sysctl: "/proc/sys/net",
		}},
		BPFFS: dir + "/bpf", Plugin: dir + "/weft-cni",
	}
	for _, d := range []string{o.Paths.Config, o.Paths.CNIConf, o.Paths.CNIBin, o.Paths.Credentials} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if settings["enable-ipv6"] == "" {
		settings["enable-ipv6"] = "true"
	}
	settings["auto-direct-node-routes"] = "true"
	for k, v := range settings {
		if err := os.WriteFile(filepath.Join(o.Paths.Config, k), []byte(v), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(o.Plugin, []byte("#!/bin/true\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"link set lo up", "link add eth0 type veth peer name wire",
		// No addresses that the kernel makes by itself, at a time of its own.
		"link set wire addrgenmode none", "link set eth0 addrgenmode none", "link set wire up",
		"address add 10.9.0.1/24 dev eth0", "address add fd09::1/64 dev eth0 nodad", "link set eth0 up",
		"route add default via 10.9.0.254",
	} {
		run(t, "ip", strings.Fields(line)...)
	}
	t.Cleanup(func() {
		_ = unix.Unmount(o.BPFFS, unix.MNT_DETACH)
		_ = unix.Unmount(o.Paths.HealthNetns, unix.MNT_DETACH)
	})
	return o, dir
}

// serveAPI starts an API server with Weft's definitions, and points the agent at it.
func serveAPI(t *testing.T, o *InitOptions) *apiservertest.Server {
	t.Helper()
	api := apiservertest.Start(t)
	api.InstallCRDs("../../install/helm/weft/crds")
	o.Paths.Credentials = api.CredentialsDir
	set(t, *o, "k8s-api-server", api.URL)
	return api
}

// snapshot is what of a node an uninstaller must leave as it was.
func snapshot(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	for _, cmd := range []string{"ip -o link", "ip -4 route show table all", "ip -6 route show table all", "iptables-nft -S", "ip6tables-nft -S"} {
		b.WriteString("# " + cmd + "\n")
		for line := range strings.Lines(run(t, strings.Fields(cmd)[0], strings.Fields(cmd)[1:]...)) {
			b.WriteString(strings.TrimSpace(line) + "\n")
		}
	}
	for _, sub := range []string{"bpf", "net.d", "bin", "run", "netns"} {
		err := filepath.Walk(filepath.Join(dir, sub), func(p string, _ os.FileInfo, err error) error {
			if err == nil && p != filepath.Join(dir, sub) {
				b.WriteString(p + "\n")
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

// started is an agent that runs.
type started struct {
	t    *testing.T
	o    InitOptions
	stop context.CancelFunc
	done chan error
}

func start(t *testing.T, o InitOptions) *started {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s := &started{t: t, o: o, stop: cancel, done: make(chan error, 1)}
	go func() { s.done <- Run(ctx, o.Options) }()
	t.Cleanup(cancel)
	eventually(t, "agent serves", func() (bool, any) {
		select {
		case err := <-s.done:
			s.done <- err
			t.Fatalf("agent ended: %v", err)
		default:
		}
		_, err := s.get(rpc.PathStatus)
		return err == nil, err
	})
	return s
}

// end ends the agent as SIGTERM does.
func (s *started) end() {
	s.t.Helper()
	s.stop()
	select {
	case err := <-s.done:
		if err != nil {
			s.t.Errorf("agent: %v", err)
		}
	case <-time.After(patient(10 * time.Second)):
		s.t.Fatal("agent does not end")
	}
}

func (s *started) get(path string) ([]byte, error) {
	c := rpc.NewClient(s.o.Paths.socket())
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patient(5*time.Second))
	defer cancel()
	return c.Get(ctx, path)
}

func fetch[T any](s *started, path string) T {
	s.t.Helper()
	b, err := s.get(path)
	if err != nil {
		s.t.Fatal(err)
	}
	var out T
	if err := json.Unmarshal(b, &out); err != nil {
		s.t.Fatal(err)
	}
	return out
}

func (s *started) component(name string) rpc.Component {
	s.t.Helper()
	for _, c := range fetch[rpc.Status](s, rpc.PathStatus).Components {
		if c.Name == name {
			return c
		}
	}
	s.t.Fatalf("no component %s", name)
	return rpc.Component{}
}

// ask speaks to the CNI socket as the plugin does.
func (s *started) ask(req cni.Request) cni.Response {
	s.t.Helper()
	var resp cni.Response
	ctx, cancel := context.WithTimeout(context.Background(), patient(10*time.Second))
	defer cancel()
	if err := cniCall(ctx, s.o.Paths.cniSocket(), req, &resp); err != nil {
		s.t.Fatal(err)
	}
	return resp
}

func eventually(t *testing.T, what string, cond func() (bool, any)) {
	t.Helper()
	deadline := time.NewTimer(patient(40 * time.Second))
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, got := cond()
		if ok {
			return
		}
		select {
		case <-deadline.C:
			t.Fatalf("%s: got %v", what, got)
		case <-tick.C:
		}
	}
}

// Guards against an agent that needs the API server to serve, one that takes
// pods without having heard of its node, one that does not end, one that takes
// its state along when it ends, and an uninstaller that leaves something.
func TestWithoutAPIServer(t *testing.T) {
	if !node(t) {
		return
	}
	o, dir := newNode(t, map[string]string{"k8s-api-server": "https://127.0.0.1:1"})
	certificate(t, o.Paths.Credentials)
	for _, f := range []string{"iptables-nft", "ip6tables-nft"} {
		run(t, f, "-N", "OTHERS") // so that the tables exist, before and after
	}
	for _, f := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} { // stays on: others may need it
		if err := os.WriteFile("/proc/sys/net/"+f, []byte("1"), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(o.BPFFS, 0o755); err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, dir)
	for range 2 {
		if err := Init(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	leaks := goleak.IgnoreCurrent()
	s := start(t, o)
	if r := s.ask(cni.Request{Command: "STATUS"}); r.Error == nil || !strings.Contains(r.Error.Msg, "has not been proven yet") {
		t.Errorf("STATUS: %+v", r)
	}
	if r := s.ask(cni.Request{Command: "DEL", ContainerID: "c", IfName: "eth0"}); r.Error != nil {
		t.Errorf("DEL: %+v", r.Error)
	}
	if r := s.ask(cni.Request{Command: "ADD", ContainerID: "c", IfName: "eth0", Netns: o.Paths.HealthNetns, Args: "K8S_POD_NAMESPACE=a;K8S_POD_NAME=b"}); r.Error == nil {
		t.Error("an ADD without ranges went well")
	}
	eventually(t, "Kubernetes is named", func() (bool, any) {
		c := s.component("Kubernetes")
		return c.State == rpc.StateWarning && strings.Contains(c.Message, "connection refused"), c
	})
	if code := httpCode(t, "http://127.0.0.1:9879/healthz"); code != http.StatusOK {
		t.Errorf("healthz %d", code)
	}
	if code := httpCode(t, "http://127.0.0.1:9879/readyz"); code != http.StatusServiceUnavailable {
		t.Errorf("readyz %d", code)
	}
	if err := Run(t.Context(), o.Options); err == nil || !strings.Contains(err.Error(), "another weft-agent runs on this node") {
		t.Errorf("a second agent: %v", err)
	}
	if err := UninstallNode(t.Context(), o.Options, t.Output()); err == nil || !strings.Contains(err.Error(), "delete the DaemonSet first") {
		t.Errorf("uninstall beside a running agent: %v", err)
	}
	s.end()
	if err := goleak.Find(leaks); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(o.Paths.BPF + "/maps/weft_ep"); err != nil {
		t.Errorf("pins went with the agent: %v", err)
	}
	for range 2 {
		if err := UninstallNode(t.Context(), o.Options, t.Output()); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Unmount(o.BPFFS, 0); err != nil { // Init mounted it; the uninstaller leaves it
		t.Error(err)
	}
	if after := snapshot(t, dir); after != before {
		t.Errorf("node before:\n%s\nafter:\n%s", before, after)
	}
}

// Guards against a life of a node that goes wrong anywhere: proven, marked,
// published; restarted without the API server, it stays ready and takes pods;
// what happens meanwhile is carried out once the server is back.
func TestLife(t *testing.T) {
	if !node(t) {
		return
	}
	o, _ := newNode(t, map[string]string{})
	api := serveAPI(t, &o)
	addNode(t, api, "n1", 1)
	addNode(t, api, "n2", 2)
	api.Do(t, http.MethodPost, "/api/v1/namespaces/default/serviceaccounts", `{"metadata":{"name":"default"}}`, nil)
	if err := Init(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	s := start(t, o)
	eventually(t, "proven", func() (bool, any) {
		c := s.component("Node proof")
		return c.State == rpc.StateOK, []rpc.Component{c, s.component("Kubernetes")}
	})
	if r := s.ask(cni.Request{Command: "STATUS"}); r.Error != nil {
		t.Errorf("STATUS: %+v", r.Error)
	}
	if _, err := os.Stat(o.Paths.conflist()); err != nil {
		t.Error(err)
	}
	eventually(t, "marked ready", func() (bool, any) { n := getNode(t, api); return marked(n), n.Spec.Taints })
	eventually(t, "route to n2", func() (bool, any) {
		r := run(t, "ip", "route", "show", "10.244.2.0/24")
		return strings.Contains(r, "via 10.9.0.2 dev eth0 proto 87 src 10.9.0.1"), r
	})
	eventually(t, "CiliumNode", func() (bool, any) {
		var cn ciliumv2.CiliumNode
		code, b := api.Call(t, http.MethodGet, "/apis/cilium.io/v2/ciliumnodes/n1", nil)
		if err := json.Unmarshal(b, &cn); err != nil || code != http.StatusOK {
			return false, s.component("Kubernetes")
		}
		return cn.Spec.HealthAddressing.IPv4 == "10.244.1.1" && cn.Spec.HealthAddressing.IPv6 == "fd00:1::1", string(b)
	})
	testStolenRoute(t)
	first := addPod(t, s, api, "one")
	eventually(t, "CiliumEndpoint", func() (bool, any) { return cep(t, api, "one") != nil, nil })
	testMetrics(t)
	s.end()

	api.Stop()
	begin := time.Now()
	s = start(t, o)
	if d := time.Since(begin); d > patient(8*time.Second) { // it waits for a server that is away; how long it takes is make bench-cni's
		t.Errorf("restart took %s", d)
	}
	if r := s.ask(cni.Request{Command: "STATUS"}); r.Error != nil {
		t.Errorf("STATUS after a restart without API server: %+v", r.Error)
	}
	if code := httpCode(t, "http://127.0.0.1:9879/readyz"); code != http.StatusOK {
		t.Errorf("readyz %d", code)
	}
	ping(t, first)
	second := addPod(t, s, nil, "two")
	ping(t, second)
	if first == second {
		t.Errorf("both pods have %s", first)
	}
	if r := s.ask(cni.Request{Command: "DEL", ContainerID: "one", IfName: "eth0"}); r.Error != nil {
		t.Errorf("DEL: %+v", r.Error)
	}
	if r := run(t, "ip", "route", "show", "10.244.2.0/24"); !strings.Contains(r, "10.9.0.2") {
		t.Errorf("the route to n2 went with the API server: %q", r)
	}
	api.Restart()
	api.Do(t, http.MethodDelete, "/api/v1/nodes/n2", nil, nil)
	eventually(t, "CiliumEndpoint of the deleted pod is gone", func() (bool, any) { return cep(t, api, "one") == nil, s.component("Kubernetes") })
	eventually(t, "route to n2 is gone", func() (bool, any) {
		r := run(t, "ip", "route", "show", "10.244.2.0/24")
		return r == "", r
	})
	testTaintAgain(t, api)
	s.end()
}

// Guards against a family that is off and matters nevertheless: a cluster with
// ranges of both, and an agent that was told to use one.
func TestOneFamily(t *testing.T) {
	if !node(t) {
		return
	}
	o, _ := newNode(t, map[string]string{"enable-ipv4": "false"})
	api := serveAPI(t, &o)
	addNode(t, api, "n1", 1)
	addNode(t, api, "n2", 2)
	if err := Init(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	s := start(t, o)
	eventually(t, "proven", func() (bool, any) { c := s.component("Node proof"); return c.State == rpc.StateOK, c })
	a := addPod(t, s, nil, "one")
	if a.Is4() {
		t.Errorf("pod has %s", a)
	}
	ping(t, a)
	for _, r := range fetch[[]table.IPCache](s, rpc.PathIPCache) {
		if r.Prefix.Addr().Is4() {
			t.Errorf("ipcache has %s", r.Prefix)
		}
	}
	if r := run(t, "ip", "-4", "route", "show", "proto", "87"); r != "" {
		t.Errorf("IPv4 route %q", r)
	}
	if r := run(t, "ip", "-6", "route", "show", "fd00:2::/64"); !strings.Contains(r, "via fd09::2") {
		t.Errorf("IPv6 route %q", r)
	}
	s.end()
}

// testStolenRoute guards against a route that another manager deletes (fault 13).
func testStolenRoute(t *testing.T) {
	t.Helper()
	run(t, "ip", "route", "delete", "10.244.2.0/24")
	begin := time.Now()
	eventually(t, "the stolen route is back", func() (bool, any) {
		r := run(t, "ip", "route", "show", "10.244.2.0/24")
		return strings.Contains(r, "10.9.0.2"), r
	})
	if d := time.Since(begin); d > 8*time.Second { // not the look every ten seconds
		t.Errorf("it took %s", d)
	}
}

// testTaintAgain guards against a taint that somebody puts back for ever.
func testTaintAgain(t *testing.T, api *apiservertest.Server) {
	t.Helper()
	api.Do(t, http.MethodPatch, "/api/v1/nodes/n1", `{"spec":{"taints":[{"key":"`+k8s.AgentNotReadyTaint+`","effect":"NoSchedule"}]}}`, nil)
	eventually(t, "the taint is taken off again", func() (bool, any) { n := getNode(t, api); return marked(n), n.Spec.Taints })
}

// testMetrics guards against metrics that cannot be read where they are promised.
func testMetrics(t *testing.T) {
	t.Helper()
	resp, err := http.Get("http://127.0.0.1:9962/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b := new(strings.Builder)
	if err := resp.Write(b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"weft_endpoints 2", "weft_node_proven 1", "weft_kubernetes_connected 1", `weft_endpoint_operation_duration_seconds_count{operation="add",outcome="success"} `} {
		if !strings.Contains(b.String(), "\n"+want) {
			t.Errorf("metrics lack %q", want)
		}
	}
}

func marked(n corev1.Node) bool {
	return !slices.ContainsFunc(n.Spec.Taints, func(x corev1.Taint) bool { return x.Key == k8s.AgentNotReadyTaint }) &&
		slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
			return c.Type == corev1.NodeNetworkUnavailable && c.Status == corev1.ConditionFalse
		})
}

func getNode(t *testing.T, api *apiservertest.Server) (n corev1.Node) {
	t.Helper()
	api.Do(t, http.MethodGet, "/api/v1/nodes/n1", nil, &n)
	return n
}

func addNode(t *testing.T, api *apiservertest.Server, name string, i int) {
	t.Helper()
	api.Do(t, http.MethodPost, "/api/v1/nodes", corev1.Node{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}, ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.NodeSpec{
			PodCIDR: fmt.Sprintf("10.244.%d.0/24", i), PodCIDRs: []string{fmt.Sprintf("10.244.%d.0/24", i), fmt.Sprintf("fd00:%d::/64", i)},
			Taints: []corev1.Taint{{Key: k8s.AgentNotReadyTaint, Effect: corev1.TaintEffectNoSchedule}},
		},
	}, nil)
	api.Do(t, http.MethodPatch, "/api/v1/nodes/"+name+"/status", corev1.Node{Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
		{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("10.9.0.%d", i)}, {Type: corev1.NodeInternalIP, Address: fmt.Sprintf("fd09::%d", i)},
	}}}, nil)
}

// addPod makes a pod at the API server, if there is one, and attaches it. It
// returns its IPv4 address.
func addPod(t *testing.T, s *started, api *apiservertest.Server, name string) netip.Addr {
	t.Helper()
	uid := ""
	if api != nil {
		var p corev1.Pod
		api.Do(t, http.MethodPost, "/api/v1/namespaces/default/pods", corev1.Pod{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{Name: "c", Image: "i"}}},
		}, &p)
		uid = string(p.UID)
	}
	path, release, err := namespaces{}.Create()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = release() })
	r := s.ask(cni.Request{
		Command: "ADD", ContainerID: name, IfName: "eth0", Netns: path,
		Args: "K8S_POD_NAMESPACE=default;K8S_POD_NAME=" + name + ";K8S_POD_UID=" + uid,
	})
	if r.Error != nil {
		t.Fatalf("ADD: %+v", r.Error)
	}
	return r.Result.IPs[0]
}

func ping(t *testing.T, a netip.Addr) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patient(2*time.Second))
	defer cancel()
	if _, err := (health.Pinger{}).Ping(ctx, a); err != nil {
		t.Error(err)
	}
}

func cep(t *testing.T, api *apiservertest.Server, name string) *ciliumv2.CiliumEndpoint {
	t.Helper()
	code, b := api.Call(t, http.MethodGet, "/apis/cilium.io/v2/namespaces/default/ciliumendpoints/"+name, nil)
	if code == http.StatusNotFound {
		return nil
	}
	var e ciliumv2.CiliumEndpoint
	if err := json.Unmarshal(b, &e); err != nil || code != http.StatusOK {
		t.Fatalf("%d %s", code, b)
	}
	return &e
}

func httpCode(t *testing.T, url string) int {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

// certificate makes credentials that nobody will accept.
func certificate(t *testing.T, dir string) {
	t.Helper()
	other := httptest.NewTLSServer(nil)
	defer other.Close()
	crt := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: other.Certificate().Raw})
	for name, b := range map[string][]byte{"ca.crt": crt, "token": []byte("x")} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
