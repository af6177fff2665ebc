// SPDX-License-Identifier: Apache-2.0

package plugin_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/cni"
	"github.com/weft-net/weft/internal/cni/plugin"
	"github.com/weft-net/weft/internal/datapath/link/nstest"
)

func TestMain(m *testing.M) { os.Exit(nstest.Main(m.Run)) }

// world is one execution's.
type world struct {
	t     *testing.T
	env   map[string]string
	stdin string
	dir   string
}

const conf = `{"cniVersion":"1.1.0","name":"weft","type":"weft-cni"}`

func newWorld(t *testing.T, command string) *world {
	return &world{t: t, stdin: conf, dir: t.TempDir(), env: map[string]string{
		"CNI_COMMAND": command, "CNI_CONTAINERID": "c1", "CNI_NETNS": "/proc/self/ns/net", "CNI_IFNAME": "eth0", "CNI_PATH": "/opt/cni/bin",
		"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=p", "CNI_NETNS_OVERRIDE": "1",
	}}
}

func (w *world) socket() string   { return filepath.Join(w.dir, "cni.sock") }
func (w *world) queue() cni.Queue { return cni.Queue{Dir: filepath.Join(w.dir, "deletes")} }

type outcome struct {
	code           int
	stdout, stderr string
	err            cni.Error
}

// run executes the plugin; within bounds how long it may wait for an agent.
func (w *world) run(within time.Duration) outcome {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	var out, errOut bytes.Buffer
	o := outcome{}
	o.code = plugin.Run(ctx, plugin.Env{
		Getenv: func(k string) string { return w.env[k] }, Stdin: strings.NewReader(w.stdin), Stdout: &out, Stderr: &errOut,
		Socket: w.socket(), Queue: w.queue(), UnreachableFile: filepath.Join(w.dir, "unreachable"),
	})
	o.stdout, o.stderr = out.String(), errOut.String()
	if o.code != 0 {
		if err := json.Unmarshal(out.Bytes(), &o.err); err != nil || o.err.Msg == "" {
			w.t.Errorf("exit code %d, but stdout is %q", o.code, o.stdout)
		}
	}
	return o
}

// agent answers on the socket. f nil breaks the connection.
func (w *world) agent(f func(cni.Request) *cni.Response) (stop func()) {
	w.t.Helper()
	l, err := net.Listen("unix", w.socket())
	if err != nil {
		w.t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			var r cni.Request
			if err := cni.ReadMessage(c, &r); err == nil {
				if resp := f(r); resp != nil {
					_ = cni.WriteMessage(c, resp)
				}
			}
			c.Close()
		}
	})
	stop = sync.OnceFunc(func() { l.Close(); wg.Wait() })
	w.t.Cleanup(stop)
	return stop
}

func result(cni.Request) *cni.Response {
	return &cni.Response{Result: &cni.Result{
		HostIfName: "lxc1", HostMAC: "02:00:00:00:00:01", MAC: "02:00:00:00:00:02", MTU: 1400,
		IPs:      []netip.Addr{netip.MustParseAddr("10.9.0.2"), netip.MustParseAddr("fd09::2")},
		Gateways: []netip.Addr{netip.MustParseAddr("169.254.1.1"), netip.MustParseAddr("fe80::1")},
	}}
}

func ok(cni.Request) *cni.Response { return &cni.Response{} }

func (o outcome) fails(t *testing.T, code uint, parts ...string) {
	t.Helper()
	if o.code != 1 || o.err.Code != code {
		t.Errorf("exit %d, %+v; want code %d", o.code, o.err, code)
	}
	for _, p := range parts {
		if !strings.Contains(o.err.Msg+"; "+o.err.Details, p) {
			t.Errorf("%q does not say %q", o.err.Error(), p)
		}
	}
}

func TestVersion(t *testing.T) {
	w := newWorld(t, "VERSION")
	w.stdin = ""
	o := w.run(time.Second)
	var v struct {
		CNIVersion        string
		SupportedVersions []string
	}
	if err := json.Unmarshal([]byte(o.stdout), &v); err != nil || o.code != 0 || v.CNIVersion != "1.1.0" || len(v.SupportedVersions) != 5 {
		t.Errorf("got %d %q, %v", o.code, o.stdout, err)
	}
}

// What the runtime gets wrong must come back with the code of the specification
// and a text that names the thing.
func TestBadInput(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(*world)
		code  uint
		says  string
	}{
		{"no command", func(w *world) { w.env["CNI_COMMAND"] = "" }, 4, "CNI_COMMAND is not set"},
		{"unknown command", func(w *world) { w.env["CNI_COMMAND"] = "MEND" }, 4, `"MEND" is unknown`},
		{"no container", func(w *world) { w.env["CNI_CONTAINERID"] = "" }, 4, "CNI_CONTAINERID"},
		{"bad container", func(w *world) { w.env["CNI_CONTAINERID"] = "../x" }, 4, `"../x"`},
		{"no interface, no namespace", func(w *world) { w.env["CNI_IFNAME"], w.env["CNI_NETNS"] = "", "" }, 4, "CNI_IFNAME, CNI_NETNS"},
		{"bad interface", func(w *world) { w.env["CNI_IFNAME"] = "a/b" }, 4, `"a/b"`},
		{"no pod", func(w *world) { w.env["CNI_ARGS"] = "IgnoreUnknown=1" }, 4, "K8S_POD_NAME"},
		{"broken args", func(w *world) { w.env["CNI_ARGS"] = "K8S_POD_NAME" }, 4, "not KEY=VALUE"},
		{"empty stdin", func(w *world) { w.stdin = " \n" }, 6, "stdin is empty"},
		{"no JSON", func(w *world) { w.stdin = "{" }, 6, "/etc/cni/net.d/05-weft.conflist"},
		{"byte order mark", func(w *world) { w.stdin = "\ufeff" + conf }, 6, "network configuration"},
		{"wrong type of name", func(w *world) { w.stdin = `{"cniVersion":"1.1.0","name":7}` }, 6, "name"},
		{"huge", func(w *world) { w.stdin = strings.Repeat(" ", 1<<20) }, 6, "more than"},
		{"no name", func(w *world) { w.stdin = `{"cniVersion":"1.1.0"}` }, 7, "name is missing"},
		{"bad name", func(w *world) { w.stdin = `{"cniVersion":"1.1.0","name":"a/b"}` }, 7, `"a/b"`},
		{"another's configuration", func(w *world) { w.stdin = `{"cniVersion":"1.1.0","name":"x","type":"bridge"}` }, 7, `type is "bridge"`},
		{"no version", func(w *world) { w.stdin = `{"name":"x"}` }, 1, `"0.1.0" is not supported`},
		{"version of tomorrow", func(w *world) { w.stdin = `{"cniVersion":"9.0.0","name":"x"}` }, 1, "supported are 0.3.0"},
		{"spoilt prevResult", func(w *world) { w.stdin = `{"cniVersion":"1.1.0","name":"x","prevResult":{"ips":7}}` }, 6, "prevResult"},
		{"namespace is gone", func(w *world) { w.env["CNI_NETNS"] = "/nonexistent" }, 8, "/nonexistent"},
		{"the runtime's own namespace", func(w *world) { w.env["CNI_NETNS_OVERRIDE"] = "" }, 8, "of the runtime itself"},
		{"CHECK in 0.3.1", func(w *world) { w.env["CNI_COMMAND"], w.stdin = "CHECK", `{"cniVersion":"0.3.1","name":"x"}` }, 1, "not part of CNI 0.3.1"},
		{"GC in 1.0.0", func(w *world) { w.env["CNI_COMMAND"], w.stdin = "GC", `{"cniVersion":"1.0.0","name":"x"}` }, 1, "not part of CNI 1.0.0"},
		{"STATUS in 1.0.0", func(w *world) { w.env["CNI_COMMAND"], w.stdin = "STATUS", `{"cniVersion":"1.0.0","name":"x"}` }, 1, "came with 1.1.0"},
		{"CHECK without prevResult", func(w *world) { w.env["CNI_COMMAND"] = "CHECK" }, 7, "prevResult"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, "ADD")
			w.agent(func(r cni.Request) *cni.Response {
				t.Errorf("the agent is asked: %+v", r)
				return &cni.Response{}
			})
			c.spoil(w)
			w.run(5*time.Second).fails(t, c.code, c.says)
		})
	}
}

// Each version of the result must be what that version's runtimes read.
func TestAddResult(t *testing.T) {
	for _, v := range cni.SupportedVersions() {
		w := newWorld(t, "ADD")
		w.stdin = fmt.Sprintf(`{"cniVersion":%q,"name":"weft","type":"weft-cni","runtimeConfig":{"portMappings":[{"hostPort":80}]},"capabilities":{"portMappings":true}}`, v)
		w.agent(result)
		o := w.run(5 * time.Second)
		var r struct {
			CNIVersion string
			Interfaces []struct {
				Name, Mac, Sandbox string
				Mtu                int
			}
			IPs []struct {
				Version          string
				Interface        *int
				Address, Gateway string
			}
			Routes []struct{ Dst, Gw string }
		}
		if err := json.Unmarshal([]byte(o.stdout), &r); err != nil || o.code != 0 {
			t.Fatalf("%s: %d %s %v", v, o.code, o.stdout, err)
		}
		if r.CNIVersion != v || len(r.Interfaces) != 2 || r.Interfaces[0].Name != "lxc1" || r.Interfaces[0].Sandbox != "" ||
			r.Interfaces[1].Name != "eth0" || r.Interfaces[1].Sandbox != "/proc/self/ns/net" || r.Interfaces[1].Mac != "02:00:00:00:00:02" {
			t.Errorf("%s: %+v", v, r)
		}
		if len(r.IPs) != 2 || r.IPs[0].Address != "10.9.0.2/32" || r.IPs[0].Gateway != "169.254.1.1" || *r.IPs[0].Interface != 1 ||
			r.IPs[1].Address != "fd09::2/128" || r.IPs[1].Gateway != "fe80::1" {
			t.Errorf("%s: %+v", v, r.IPs)
		}
		if len(r.Routes) != 2 || r.Routes[0].Dst != "0.0.0.0/0" || r.Routes[1].Dst != "::/0" || r.Routes[1].Gw != "fe80::1" {
			t.Errorf("%s: %+v", v, r.Routes)
		}
		if v == "1.1.0" && r.Interfaces[1].Mtu != 1400 {
			t.Errorf("%s: MTU %d", v, r.Interfaces[1].Mtu)
		}
	}
}

// A plugin before this one in the chain must find its result in ours.
func TestAddAfterAnother(t *testing.T) {
	w := newWorld(t, "ADD")
	w.stdin = `{"cniVersion":"1.1.0","name":"weft","prevResult":{"cniVersion":"1.1.0","interfaces":[{"name":"other0"}],
		"ips":[{"address":"172.30.0.5/24","interface":0}],"routes":[{"dst":"172.30.0.0/16"}],"dns":{"nameservers":["172.30.0.1"]}}}`
	w.agent(result)
	o := w.run(5 * time.Second)
	for _, want := range []string{`"other0"`, `"172.30.0.5/24"`, `"172.30.0.0/16"`, `"172.30.0.1"`, `"10.9.0.2/32"`, `"interface": 2`} {
		if !strings.Contains(o.stdout, want) {
			t.Errorf("%s is not in %s", want, o.stdout)
		}
	}
}

// CHECK compares what the runtime remembers of the pod, and nothing else of the chain.
func TestCheck(t *testing.T) {
	w := newWorld(t, "CHECK")
	w.stdin = `{"cniVersion":"1.1.0","name":"weft","prevResult":{"cniVersion":"1.1.0",
		"interfaces":[{"name":"lxc1"},{"name":"eth0","sandbox":"/x"},{"name":"net1","sandbox":"/x"}],
		"ips":[{"address":"10.9.0.2/32","interface":1},{"address":"fd09::2/128","interface":1},{"address":"172.30.0.5/24","interface":2}]}}`
	var got cni.Request
	w.agent(func(r cni.Request) *cni.Response { got = r; return &cni.Response{} })
	if o := w.run(5 * time.Second); o.code != 0 {
		t.Errorf("got %+v", o)
	}
	if fmt.Sprint(got.PrevIPs) != "[10.9.0.2 fd09::2]" || got.ContainerID != "c1" || got.Netns == "" {
		t.Errorf("asked %+v", got)
	}
}

func TestGC(t *testing.T) {
	w := newWorld(t, "GC")
	w.env = map[string]string{"CNI_COMMAND": "GC", "CNI_PATH": "/opt/cni/bin"}
	w.stdin = `{"cniVersion":"1.1.0","name":"weft","cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"},{"containerID":"b","ifname":"net1"}]}`
	var got cni.Request
	w.agent(func(r cni.Request) *cni.Response { got = r; return &cni.Response{} })
	if o := w.run(5 * time.Second); o.code != 0 || fmt.Sprint(got.Valid) != "[{a eth0} {b net1}]" {
		t.Errorf("got %+v, asked %+v", o, got)
	}
}

// A GC whose list got lost must not delete all pods of the node; a list that is
// empty is another thing.
func TestGCWithoutList(t *testing.T) {
	for stdin, code := range map[string]int{
		`{"cniVersion":"1.1.0","name":"weft"}`:                                       1,
		`{"cniVersion":"1.1.0","name":"weft","cni.dev/valid-attachment":[]}`:         1,
		`{"cniVersion":"1.1.0","name":"weft","cni.dev/valid-attachments":[]}`:        0,
		`{"cniVersion":"1.1.0","name":"weft","cni.dev/valid-attachments":null}`:      0,
		`{"cniVersion":"1.1.0","name":"weft","cni.dev/valid-attachments":{"a":"b"}}`: 1,
		`{"cniVersion":"1.1.0","name":"weft","cni.dev/valid-attachments":[{}, "x"]}`: 1,
	} {
		w := newWorld(t, "GC")
		w.env, w.stdin = map[string]string{"CNI_COMMAND": "GC", "CNI_PATH": "/opt/cni/bin"}, stdin
		asked := 0
		stop := w.agent(func(r cni.Request) *cni.Response {
			asked++
			if len(r.Valid) != 0 {
				t.Errorf("%s: keeps %v", stdin, r.Valid)
			}
			return &cni.Response{}
		})
		o := w.run(5 * time.Second)
		stop()
		if o.code != code || asked != 1-code {
			t.Errorf("%s: code %d, the agent was asked %d times", stdin, o.code, asked)
		}
		if code == 1 && !strings.Contains(stdin, "attachments\"") {
			o.fails(t, cni.CodeConfig, "GC without cni.dev/valid-attachments", "nothing was deleted", "the runtime passes the list")
		}
	}
}

// The agent's own words must reach the pod's event unchanged.
func TestAgentsError(t *testing.T) {
	w := newWorld(t, "ADD")
	w.agent(func(cni.Request) *cni.Response {
		return &cni.Response{Error: &cni.Error{Code: 11, Msg: "pool is exhausted", Details: "add nodes"}}
	})
	o := w.run(5 * time.Second)
	o.fails(t, 11, "pool is exhausted", "add nodes")
	if !strings.Contains(o.stdout, `"cniVersion":"1.1.0"`) {
		t.Errorf("the error does not tell its version: %s", o.stdout)
	}
}

// While the agent restarts, ADD waits; if it does not come, the event says where to look.
func TestAddWaitsForAgent(t *testing.T) {
	w := newWorld(t, "ADD")
	w.run(300*time.Millisecond).fails(t, 11, "no agent runs on this node", "kubectl -n kube-system get pods -l k8s-app=cilium -o wide")
	timer := time.AfterFunc(300*time.Millisecond, func() { w.agent(result) })
	defer timer.Stop()
	if o := w.run(10 * time.Second); o.code != 0 {
		t.Errorf("got %+v", o)
	}
}

// An agent that is killed with the request in hand: the next one gets it again.
func TestAgentDiesHalfWay(t *testing.T) {
	w := newWorld(t, "ADD")
	n := 0
	w.agent(func(r cni.Request) *cni.Response {
		if n++; n < 3 {
			return nil
		}
		return result(r)
	})
	if o := w.run(10 * time.Second); o.code != 0 || n != 3 {
		t.Errorf("got %+v after %d requests", o, n)
	}
}

// DEL must succeed without an agent, or pods hang in Terminating; and it must
// be carried out later.
func TestDelWithoutAgent(t *testing.T) {
	w := newWorld(t, "DEL")
	w.env["CNI_NETNS"], w.env["CNI_ARGS"] = "", "" // the sandbox is gone already
	for range 2 {
		if o := w.run(5 * time.Second); o.code != 0 || o.stdout != "" || !strings.Contains(o.stderr, "queued") {
			t.Errorf("got %+v", o)
		}
	}
	got, err := w.queue().List()
	if err != nil || len(got) != 1 || got[0].Err != nil || got[0].Request.ContainerID != "c1" || got[0].Request.IfName != "eth0" {
		t.Errorf("queued %+v, %v", got, err)
	}
	w.agent(ok)
	w.env["CNI_CONTAINERID"] = "c2"
	if o := w.run(5 * time.Second); o.code != 0 || w.queue().Has(cni.Attachment{ContainerID: "c2", IfName: "eth0"}) {
		t.Errorf("with an agent: %+v", o)
	}
}

// An agent that hangs is not told by anything but the queue; if that fails too,
// the DEL must be repeated.
func TestDelWithHungAgent(t *testing.T) {
	w := newWorld(t, "DEL")
	hang := make(chan struct{})
	w.agent(func(cni.Request) *cni.Response { <-hang; return nil })
	defer close(hang)
	if o := w.run(200 * time.Millisecond); o.code != 0 || !w.queue().Has(cni.Attachment{ContainerID: "c1", IfName: "eth0"}) {
		t.Errorf("got %+v", o)
	}
	if err := os.RemoveAll(w.queue().Dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(w.queue().Dir, nil, 0o600); err != nil { // no directory can be made
		t.Fatal(err)
	}
	w.run(200*time.Millisecond).fails(t, 11, "did not answer", "cannot be queued")
}

// Where no agent runs and nothing can be written, the DEL succeeds still: the
// next start of the agent finds that the link is gone.
func TestDelWithoutAgentAndQueue(t *testing.T) {
	w := newWorld(t, "DEL")
	if err := os.WriteFile(w.queue().Dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if o := w.run(300 * time.Millisecond); o.code != 0 || !strings.Contains(o.stderr, "next start") {
		t.Errorf("got %+v", o)
	}
}

// A restart of the agent must not make the node unready; an agent that is gone
// for a minute, or was never there, must.
func TestStatus(t *testing.T) {
	w := newWorld(t, "STATUS")
	w.run(200*time.Millisecond).fails(t, 50, "no agent runs", "kubectl")
	stop := w.agent(ok)
	if o := w.run(5 * time.Second); o.code != 0 {
		t.Errorf("got %+v", o)
	}
	stop() // the socket's file stays
	for range 2 {
		if o := w.run(200 * time.Millisecond); o.code != 0 {
			t.Errorf("just after the agent went: %+v", o)
		}
	}
	mark := filepath.Join(w.dir, "unreachable")
	old := time.Now().Add(-61 * time.Second)
	if err := os.Chtimes(mark, old, old); err != nil {
		t.Fatal(err)
	}
	w.run(200*time.Millisecond).fails(t, 50, "for 1m1s")
	if err := errors.Join(os.Remove(w.socket()), os.Remove(mark)); err != nil {
		t.Fatal(err)
	}
	w.agent(func(cni.Request) *cni.Response {
		return &cni.Response{Error: &cni.Error{Code: 50, Msg: "not proven yet"}}
	})
	w.run(5*time.Second).fails(t, 50, "not proven yet")
}

// Nothing that a runtime writes may crash the plugin or reach the agent unchecked.
func FuzzStdin(f *testing.F) {
	f.Add([]byte(conf))
	f.Add([]byte(`{"cniVersion":"0.4.0","name":"x","prevResult":{"ips":[{"version":"4","address":"10.0.0.1/24","interface":5}],"interfaces":[]},"dns":{"nameservers":["x"]}}`))
	f.Add([]byte(`{"cniVersion":"1.1.0","name":"weft","cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := plugin.ParseConf(b)
		if err != nil {
			var e *cni.Error
			if !errors.As(err, &e) || (e.Code != 1 && e.Code != 6 && e.Code != 7) || e.Msg == "" {
				t.Fatalf("error is %#v", err)
			}
			return
		}
		if c.Name == "" || c.CNIVersion == "" {
			t.Fatalf("took %+v", c)
		}
		if _, err := c.Previous(); err != nil {
			var e *cni.Error
			if !errors.As(err, &e) || e.Code != 6 {
				t.Fatalf("error is %#v", err)
			}
		}
	})
}
