// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"

	ciliumv2 "github.com/weft-net/weft/api/cilium.io/v2"
	"github.com/weft-net/weft/internal/datapath/link"
	"github.com/weft-net/weft/internal/k8s"
	"github.com/weft-net/weft/internal/k8s/apiservertest"
	"github.com/weft-net/weft/internal/rpc"
)

// peerAnnounces writes what the agent of n2 says of itself.
func peerAnnounces(t *testing.T, api *apiservertest.Server, what string) {
	t.Helper()
	const at = "/apis/cilium.io/v2/ciliumnodes"
	_, _ = api.Call(t, http.MethodDelete, at+"/n2", nil)
	annotations := ""
	if what != "" {
		annotations = fmt.Sprintf(`"annotations":{%q:%q},`, k8s.TunnelAnnotation, what)
	}
	api.Do(t, http.MethodPost, at, fmt.Sprintf(`{"apiVersion":"cilium.io/v2","kind":"CiliumNode","metadata":{"name":"n2",%s
		"labels":{%q:%q}},"spec":{"health":{"ipv4":"10.244.2.1"}}}`, annotations, ciliumv2.PartOfLabel, ciliumv2.PartOfValue), nil)
}

func announced(t *testing.T, api *apiservertest.Server) (string, string) {
	t.Helper()
	var cn ciliumv2.CiliumNode
	_, b := api.Call(t, http.MethodGet, "/apis/cilium.io/v2/ciliumnodes/n1", nil)
	if err := json.Unmarshal(b, &cn); err != nil {
		return "", string(b)
	}
	return cn.Annotations[k8s.TunnelAnnotation], string(b)
}

// overlayRoutes wants the pods of n2 behind the overlay, or behind eth0.
func overlayRoutes(t *testing.T, by bool) {
	t.Helper()
	dev := "dev eth0"
	if by {
		dev = "dev " + link.TunnelDevice
	}
	eventually(t, "n2 "+dev, func() (bool, any) {
		r := run(t, "ip", "route", "show", "10.244.2.0/24") + run(t, "ip", "-6", "route", "show", "fd00:2::/64")
		return strings.Count(r, dev+" ") == 2 && strings.Contains(r, "src 10.9.0.1"), r
	})
}

func set(t *testing.T, o InitOptions, key, value string) {
	t.Helper()
	if err := os.WriteFile(o.Paths.Config+"/"+key, []byte(value), 0o644); err != nil {
		t.Fatal(err)
	}
}

func tunnelIndex(t *testing.T, s *started) int {
	t.Helper()
	l, err := link.New("", s.o.Log)
	if err != nil {
		t.Fatal(err)
	}
	index, _, err := l.FindTunnel()
	if err != nil {
		t.Fatal(err)
	}
	return index
}

// Guards against a life in the overlay that goes wrong anywhere: announced once it
// is there, mended when somebody takes the device away, the same after a restart
// without the API server, kept after a change of mode as long as others send to
// it, and gone with the uninstaller.
func TestTunnelMode(t *testing.T) {
	if !node(t) {
		return
	}
	o, _ := newNode(t, map[string]string{"routing-mode": "tunnel", "enable-ipv4-big-tcp": "true"})
	api := serveAPI(t, &o)
	addNode(t, api, "n1", 1)
	addNode(t, api, "n2", 2)
	api.Do(t, http.MethodPost, "/api/v1/namespaces/default/serviceaccounts", `{"metadata":{"name":"default"}}`, nil)
	if err := Init(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	s := start(t, o)
	eventually(t, "proven", func() (bool, any) { c := s.component("Node proof"); return c.State == rpc.StateOK, c })
	overlayRoutes(t, false) // n2 has not said anything yet
	peerAnnounces(t, api, "vxlan:8472:ipv4")
	overlayRoutes(t, true)
	eventually(t, "announced", func() (bool, any) { a, all := announced(t, api); return a == "vxlan:8472:ipv4", all })
	if c := s.component("Routing"); c.State != rpc.StateOK || !strings.Contains(c.Message, "tunnel (vxlan:8472:ipv4), 1 of 1 other nodes take part") {
		t.Errorf("status: %+v", c)
	}
	tunnelBounds(t, s)
	pod := addPod(t, s, api, "one")
	ping(t, pod)
	for _, dev := range []string{link.TunnelDevice, "lxc_health"} {
		if out := run(t, "ip", "link", "show", dev); !strings.Contains(out, "mtu 1450") {
			t.Errorf("MTU: %s", out)
		}
	}
	for _, harm := range []string{"link del weft_vxlan", "link set weft_vxlan down", "link set weft_vxlan mtu 1400", "addr flush dev weft_vxlan"} {
		run(t, "ip", strings.Fields(harm)...)
		eventually(t, "mended after ip "+harm, func() (bool, any) {
			out := run(t, "ip", "addr", "show") + run(t, "ip", "-6", "route", "show", "dev", "lo")
			at := strings.Index(out, link.TunnelDevice)
			return at >= 0 && strings.Contains(out[at:], "mtu 1450") && strings.Contains(out[at:], ",UP,LOWER_UP") && strings.Contains(out[at:], "inet 10.9.0.1/32"), out
		})
		overlayRoutes(t, true)
		eventually(t, "programs", func() (bool, any) { c := s.component("Datapath"); return c.State == rpc.StateOK, c })
	}
	index := tunnelIndex(t, s)
	s.end()

	api.Stop()
	s = start(t, o)
	if got := tunnelIndex(t, s); got != index {
		t.Errorf("device %d after a restart, %d before", got, index)
	}
	overlayRoutes(t, true)
	if c := s.component("Routing"); c.State != rpc.StateOK {
		t.Errorf("status after a restart without API server: %+v", c)
	}
	s.end()
	api.Restart()

	set(t, o, "routing-mode", "native")
	s = start(t, o)
	eventually(t, "announced no more", func() (bool, any) { a, all := announced(t, api); return a == "" && all != "", all })
	overlayRoutes(t, true) // n2 is still in, and takes part both ways
	if got := tunnelIndex(t, s); got != index {
		t.Errorf("device %d after the change of mode, %d before", got, index)
	}
	peerAnnounces(t, api, "")
	overlayRoutes(t, false)
	eventually(t, "device gone", func() (bool, any) { i := tunnelIndex(t, s); return i == 0, i })
	if c := s.component("Datapath"); c.State != rpc.StateOK {
		t.Errorf("status: %+v", c)
	}
	eventually(t, "BIG TCP, once the overlay is over", func() (bool, any) {
		c := s.component("BIG TCP")
		return c.State == rpc.StateOK || bounds(t, s, "eth0").GSO4 == 0, c
	})
	s.end()

	set(t, o, "routing-mode", "tunnel")
	run(t, "ip", "link", "add", "flannel.1", "type", "vxlan", "id", "1", "dstport", "8472")
	s = start(t, o)
	eventually(t, "the port's owner is named", func() (bool, any) {
		c := s.component("Routing")
		return c.State == rpc.StateWarning && strings.Contains(c.Message, "flannel.1"), c
	})
	run(t, "ip", "link", "del", "flannel.1")
	eventually(t, "in again", func() (bool, any) { i := tunnelIndex(t, s); return i != 0, i })
	s.end()
	if err := UninstallNode(t.Context(), o.Options, t.Output()); err != nil {
		t.Fatal(err)
	}
	if got := tunnelIndex(t, s); got != 0 {
		t.Error("the uninstaller left the tunnel device")
	}
}
