// SPDX-License-Identifier: Apache-2.0

package endpoint_test

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/internal/datapath/link/nstest"
	"github.com/weft-net/weft/internal/table"
)

// mtus are those of both ends, the row and the list.
func (w *world) mtus(ep table.Endpoint, ns string) string {
	w.t.Helper()
	host, err := netlink.LinkByName(ep.HostIfName)
	if err != nil {
		w.t.Fatal(err)
	}
	var pod *net.Interface
	nstest.Inside(w.t, ns, func() (err error) { pod, err = net.InterfaceByName("eth0"); return err })
	rows, err := w.side.ListEndpoints()
	if err != nil || len(rows) != 1 {
		w.t.Fatalf("rows %v, %v", rows, err)
	}
	return fmt.Sprint(host.Attrs().MTU, pod.MTU, rows[0].MTU)
}

// Faults: a device's MTU shrinks and running pods go on sending what no longer
// fits; it grows and they never profit; an agent that was restarted meanwhile
// believes in the old one; too small an MTU takes the pods' IPv6 away for good.
func TestFollowMTU(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		m := w.manager()
		ns := nstest.Netns(t)
		ep := w.add(m, "web", ns)
		for _, mtu := range []int{1280, 9000, 1400} {
			w.mtu = mtu
			if err := m.FollowMTU(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got, want := w.mtus(ep, ns), fmt.Sprint(mtu, mtu, mtu); got != want || m.List()[0].MTU != mtu {
				t.Errorf("host, pod, row: %s, want %s; listed %d", got, want, m.List()[0].MTU)
			}
			reach(t, m.List()[0])
			if err := m.Check(t.Context(), "c-web", "eth0", nil); err != nil {
				t.Error(err)
			}
		}
		w.mtu = 1279
		if err := m.FollowMTU(t.Context()); err == nil || !strings.Contains(err.Error(), "1280 are needed") {
			t.Errorf("got %v", err)
		}
		w.mtu = 1500
		m = w.manager() // restarted
		if err := m.FollowMTU(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := w.mtus(ep, ns); got != "1500 1500 1500" {
			t.Errorf("after a restart: %s", got)
		}
		w.del(m, "web")
		w.reap(m)
	})
}
