// SPDX-License-Identifier: Apache-2.0

package service_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/service"
	"github.com/weft-net/weft/internal/table"
)

// hostPort reads "[HOSTIP:]PORT>TO[/PROTO]", an IPv6 address in brackets.
func hostPort(t *testing.T, text string) (h table.HostPort) {
	t.Helper()
	at, to, _ := strings.Cut(text, ">")
	to, proto, _ := strings.Cut(to, "/")
	if h.Proto = table.ProtoTCP; proto == "UDP" {
		h.Proto = table.ProtoUDP
	}
	if full, err := netip.ParseAddrPort(at); err == nil {
		h.HostIP, h.Port = full.Addr(), int32(full.Port())
	} else if _, err := fmt.Sscan(at, &h.Port); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(to, &h.To); err != nil {
		t.Fatal(err)
	}
	return h
}

// pod is one that was created at a moment.
func (w *world) pod(t *testing.T, name string, created int64, addresses []netip.Addr, ports ...string) {
	t.Helper()
	p := &table.PodHostPorts{Namespace: "x", Pod: name, UID: name, Created: time.Unix(created, 0)}
	for _, text := range ports {
		p.Ports = append(p.Ports, hostPort(t, text))
	}
	w.model.SetPod(p, addresses, time.Time{})
}

// lines renders all rows: "KEY TYPE SERVICE BACKENDS".
func (w *world) lines(t *testing.T) (out []string) {
	t.Helper()
	w.commit(t)
	for _, f := range w.rows {
		line := fmt.Sprintf("%s %s %s:%s", f.Key, f.Type, f.Name(), f.PortName)
		for _, b := range f.Backends {
			line += " " + b.Addr.String()
			if !b.Local {
				t.Errorf("%s: %s is not of this node", line, b.Addr)
			}
		}
		out = append(out, line)
	}
	slices.Sort(out)
	return out
}

func (w *world) wants(t *testing.T, what string, want ...string) {
	t.Helper()
	if got := w.lines(t); !slices.Equal(got, want) {
		t.Errorf("%s: rows\n  %s\nwant\n  %s", what, strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

// Guards against hostPorts at other addresses, protocols or families than the pod
// asks for, and against ones that outlive it.
func TestHostPorts(t *testing.T) {
	w := newWorld(config())
	w.pod(t, "p", 1, nil, "8080>80")
	w.wants(t, "no address yet")
	w.pod(t, "p", 1, addrs("10.0.0.1", "fd00::1"),
		"8080>80", "53>53/UDP", "53>5353", "127.0.0.1:9000>90", "[::1]:9000>91", "172.18.0.2:8080>81", "0.0.0.0:7000>70", "[::]:7001>71")
	w.wants(t, "both families",
		"0.0.0.0:53/TCP HostPort x/p:host-port:53 10.0.0.1:5353",
		"0.0.0.0:53/UDP HostPort x/p:host-port:53 10.0.0.1:53",
		"0.0.0.0:7000/TCP HostPort x/p:host-port:0.0.0.0:7000 10.0.0.1:70",
		"0.0.0.0:8080/TCP HostPort x/p:host-port:8080 10.0.0.1:80",
		"127.0.0.1:9000/TCP HostPort x/p:host-port:127.0.0.1:9000 10.0.0.1:90",
		"172.18.0.2:8080/TCP HostPort x/p:host-port:172.18.0.2:8080 10.0.0.1:81",
		"[::1]:9000/TCP HostPort x/p:host-port:[::1]:9000 [fd00::1]:91",
		"[::]:53/TCP HostPort x/p:host-port:53 [fd00::1]:5353",
		"[::]:53/UDP HostPort x/p:host-port:53 [fd00::1]:53",
		"[::]:7001/TCP HostPort x/p:host-port:[::]:7001 [fd00::1]:71",
		"[::]:8080/TCP HostPort x/p:host-port:8080 [fd00::1]:80",
	)
	if s := w.model.Stats(); s.Services != 0 || s.Frontends != 11 || s.Backends != 11 {
		t.Errorf("stats %+v", s)
	}
	w.pod(t, "p", 1, addrs("10.0.0.9"), "8080>80")
	w.wants(t, "the pod has another address, and fewer ports", "0.0.0.0:8080/TCP HostPort x/p:host-port:8080 10.0.0.9:80")
	w.model.DeletePod("x", "p", time.Time{})
	w.wants(t, "the pod has gone")
	if s := w.model.Stats(); s != (service.Stats{}) {
		t.Errorf("stats of nothing: %+v", s)
	}
	if f := w.model.Findings(); len(f) > 0 {
		t.Errorf("findings: %v", f)
	}
}

// nodePort is a Service of one port.
func nodePort(name string, created int64, port int32) *table.Service {
	return &table.Service{
		Namespace: "x", Name: name, Created: time.Unix(created, 0), Type: table.ServiceNodePort, ClusterIPs: addrs("10.96.0.1"),
		Ports: []table.ServicePortSpec{{Name: "web", Proto: table.ProtoTCP, Port: 80, NodePort: port}},
	}
}

// Guards against a pod that takes connections away from a Service or from an older
// pod, against a refusal that nobody hears of or that harms the pod's other ports,
// and against a port that stays refused when its holder has gone.
func TestHostPortsClash(t *testing.T) {
	const (
		service0 = "10.96.0.1:80/TCP ClusterIP x/s:web"
		service1 = "0.0.0.0:30000/TCP NodePort x/s:web"
		old      = "0.0.0.0:9000/TCP HostPort x/old:host-port:9000 10.0.0.1:90"
		young    = "0.0.0.0:9001/TCP HostPort x/young:host-port:9001 10.0.0.2:90"
	)
	w := newWorld(config())
	w.pod(t, "young", 2, addrs("10.0.0.2"), "9000>90", "9001>90", "172.18.0.2:30000>90", "127.0.0.1:30000>90", "172.18.0.2:30000>91/UDP")
	w.pod(t, "wide", 2, addrs("10.0.0.3"), "30000>90")
	udp := "172.18.0.2:30000/UDP HostPort x/young:host-port:172.18.0.2:30000 10.0.0.2:91"
	alone := []string{
		"0.0.0.0:30000/TCP HostPort x/wide:host-port:30000 10.0.0.3:90", "0.0.0.0:9000/TCP HostPort x/young:host-port:9000 10.0.0.2:90", young,
		"127.0.0.1:30000/TCP HostPort x/young:host-port:127.0.0.1:30000 10.0.0.2:90",
		"172.18.0.2:30000/TCP HostPort x/young:host-port:172.18.0.2:30000 10.0.0.2:90", udp,
	}
	w.wants(t, "alone", alone...)
	w.pod(t, "old", 1, addrs("10.0.0.1"), "9000>90")
	w.commit(t)
	w.set(nodePort("s", 3, 30000))
	w.wants(t, "a Service and an older pod", service1, old, young, service0, udp)
	var got []string
	for _, f := range w.model.Findings() {
		got = append(got, f.String())
	}
	want := []string{
		"pod x/wide: HostPort 0.0.0.0:30000/TCP belongs to Service x/s, whose nodePort it is: remove it from one of them",
		"pod x/young: HostPort 0.0.0.0:9000/TCP belongs to pod x/old, which is older: remove it from one of them",
		"pod x/young: HostPort 172.18.0.2:30000/TCP belongs to Service x/s, whose nodePort it is: remove it from one of them",
		"pod x/young: HostPort 127.0.0.1:30000/TCP belongs to Service x/s, whose nodePort it is: remove it from one of them",
	}
	if !slices.Equal(got, want) {
		t.Errorf("findings\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
	w.model.DeletePod("x", "old", time.Time{})
	w.commit(t)
	w.delete("x", "s")
	w.wants(t, "alone again", alone...)
	if f := w.model.Findings(); len(f) > 0 {
		t.Errorf("findings: %v", f)
	}
}

// Guards against ports and addresses that nothing can be sent to, and against a pod
// whose other ports are refused for them.
func TestHostPortsWithGarbage(t *testing.T) {
	w := newWorld(config())
	w.pod(t, "p", 1, addrs("10.0.0.1"), "8080>80", "224.0.0.1:80>80", "[fe80::1]:81>80", "70000>80", "82>0")
	w.wants(t, "what is left", "0.0.0.0:8080/TCP HostPort x/p:host-port:8080 10.0.0.1:80")
	all := fmt.Sprint(w.model.Findings())
	for _, what := range []string{"hostIP 224.0.0.1 of hostPort 80 is a multicast address", "hostIP fe80::1 of hostPort 81 is a link-local", "hostPort 70000", "hostPort 82 to containerPort 0/TCP"} {
		if !strings.Contains(all, what) {
			t.Errorf("findings %s do not name %q", all, what)
		}
	}
}
