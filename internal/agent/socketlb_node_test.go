// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/datapath/link/nstest"
	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/k8s/apiservertest"
	"github.com/weft-net/weft/internal/rpc"
)

// nodeCgroup makes a cgroup2 hierarchy for the node, with this process in it.
func nodeCgroup(t *testing.T) string {
	t.Helper()
	root := nstest.Mount(t, "cgroup2", "")
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	home := root
	for line := range strings.Lines(string(b)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			home = filepath.Join(root, path)
		}
	}
	dir := filepath.Join(home, fmt.Sprintf("weft-agent-test-%d", os.Getpid()))
	move := func(to string) {
		if err := os.WriteFile(filepath.Join(to, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{dir, dir + "/self"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	move(dir + "/self")
	t.Cleanup(func() {
		move(home)
		if err := errors.Join(os.Remove(dir+"/self"), os.Remove(dir)); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// says serves TCP and UDP at an address of the node: it says its name.
func says(t *testing.T, at, name string) {
	t.Helper()
	l, err := net.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	u, err := net.ListenPacket("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = l.Close(), u.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte(name))
			_ = c.Close()
		}
	}()
	go func() {
		for buf := make([]byte, 16); ; {
			_, from, err := u.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = u.WriteTo([]byte(name), from)
		}
	}()
}

// ask talks to a service and returns who answered.
func ask(network, to string) (string, error) {
	c, err := net.DialTimeout(network, to, time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	return exchange(c)
}

func exchange(c net.Conn) (string, error) {
	if err := c.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return "", err
	}
	if _, err := c.Write([]byte("who")); err != nil {
		return "", err
	}
	buf := make([]byte, 16)
	n, err := c.Read(buf)
	return string(buf[:n]), err
}

func setSlice(t *testing.T, api *apiservertest.Server, method, name string, endpoints ...string) {
	t.Helper()
	var es []string
	for _, e := range endpoints {
		addr, state, _ := strings.Cut(e, " ")
		conditions := `"ready":true,"serving":true,"terminating":false`
		if state == "terminating" {
			conditions = `"ready":false,"serving":true,"terminating":true`
		}
		es = append(es, fmt.Sprintf(`{"addresses":[%q],"nodeName":"n1","conditions":{%s}}`, addr, conditions))
	}
	path := "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
	if method == http.MethodPut {
		path += "/" + name + "-1"
	}
	api.Do(t, method, path, fmt.Sprintf(`{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice",
		"metadata":{"name":"%s-1","namespace":"default","labels":{"kubernetes.io/service-name":%q}},"addressType":"IPv4",
		"ports":[{"name":"t","port":8080,"protocol":"TCP"},{"name":"u","port":8080,"protocol":"UDP"}],"endpoints":[%s]}`,
		name, name, strings.Join(es, ",")), nil)
}

// Guards against parts that work alone and are not put together: a socket of the
// node gets the backend of a Service of the API server, also while no agent runs; a
// connected UDP socket keeps a backend that shuts down, and is told when it is gone;
// switched off nothing is left.
func TestNodeBalancesSockets(t *testing.T) {
	if !node(t) {
		return
	}
	o, _ := newNode(t, map[string]string{"bpf-lb-sock": "true", "enable-ipv6": "false"})
	set(t, o, "cgroup-root", nodeCgroup(t))
	api := serveAPI(t, &o)
	addNode(t, api, "n1", 1)
	if err := Init(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	run(t, "ip", "address", "add", "10.9.0.2/24", "dev", "eth0")
	says(t, "10.9.0.1:8080", "one")
	says(t, "10.9.0.2:8080", "two")
	s := start(t, o)
	var svc struct{ Spec struct{ ClusterIP string } }
	api.Do(t, http.MethodPost, "/api/v1/namespaces/default/services", `{"apiVersion":"v1","kind":"Service","metadata":{"name":"web"},
		"spec":{"type":"NodePort","ports":[{"name":"t","port":80,"targetPort":8080,"nodePort":30080},
		{"name":"u","port":53,"protocol":"UDP","targetPort":8080,"nodePort":30053}]}}`, &svc)
	ip := svc.Spec.ClusterIP
	if _, err := netip.ParseAddr(ip); err != nil {
		t.Fatalf("cluster IP %q: %v", ip, err)
	}
	answers := func(network, to, want string) func() (bool, any) {
		return func() (bool, any) {
			got, err := ask(network, to)
			return err == nil && got == want, fmt.Sprint(got, err)
		}
	}
	eventually(t, "a service without backends refuses", func() (bool, any) {
		_, err := ask("tcp", ip+":80")
		return errors.Is(err, unix.ECONNREFUSED), err
	})
	setSlice(t, api, http.MethodPost, "web", "10.9.0.1")
	for _, to := range []string{ip + ":80", "10.9.0.1:30080", "127.0.0.1:30080"} {
		eventually(t, to+" answers", answers("tcp", to, "one"))
	}
	eventually(t, "the component is well", func() (bool, any) {
		c := s.component("SocketLB")
		return c.State == rpc.StateOK && strings.Contains(c.Message, "pods and the node"), c
	})
	udp, err := net.Dial("udp", ip+":53")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	if got, err := exchange(udp); err != nil || got != "one" {
		t.Fatalf("udp: %q, %v", got, err)
	}
	sockets := fetch[[]maps.SocketRow](s, rpc.PathBPFLBSockets)
	if !slices.ContainsFunc(sockets, func(r maps.SocketRow) bool {
		return r.Service.String() == ip+":53" && r.Backend.String() == "10.9.0.1:8080"
	}) {
		t.Errorf("sockets: %v", sockets)
	}

	setSlice(t, api, http.MethodPut, "web", "10.9.0.1 terminating", "10.9.0.2")
	eventually(t, "the other backend answers", answers("tcp", ip+":80", "two"))
	if got, err := exchange(udp); err != nil || got != "one" {
		t.Errorf("a backend that shuts down does not answer its socket any more: %q, %v", got, err)
	}
	if err := udp.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	setSlice(t, api, http.MethodPut, "web", "10.9.0.2")
	if _, err := udp.Read(make([]byte, 16)); !errors.Is(err, unix.ECONNABORTED) {
		t.Errorf("the backend of a connected socket is gone: %v, want %v", err, unix.ECONNABORTED)
	}

	s.end()
	if got, err := ask("tcp", ip+":80"); err != nil || got != "two" {
		t.Errorf("while no agent runs: %q, %v", got, err)
	}
	s = start(t, o)
	if got, err := ask("tcp", ip+":80"); err != nil || got != "two" {
		t.Errorf("after a restart: %q, %v", got, err)
	}
	eventually(t, "the component is well again", func() (bool, any) {
		c := s.component("SocketLB")
		return c.State == rpc.StateOK, c
	})
	s.end()
	set(t, o, "bpf-lb-sock", "false")
	s = start(t, o)
	if c := s.component("SocketLB"); c.State != rpc.StateDisabled {
		t.Errorf("switched off: %+v", c)
	}
	if got, err := ask("tcp", ip+":80"); err == nil {
		t.Errorf("switched off, and %s answers", got)
	}
	if left, err := filepath.Glob(o.Paths.BPF + "/links/cgroup_*"); err != nil || len(left) > 0 {
		t.Errorf("switched off, and links are left: %v, %v", left, err)
	}
	s.end()
}
