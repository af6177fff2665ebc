// SPDX-License-Identifier: Apache-2.0

package endpoint_test

import (
	"testing"

	"github.com/weft-net/weft/internal/datapath/link"
	"github.com/weft-net/weft/internal/datapath/link/nstest"
	"github.com/weft-net/weft/internal/table"
)

// sizes are the bounds of both ends.
func (w *world) sizes(ep table.Endpoint, ns string) (host, pod link.Sizes) {
	w.t.Helper()
	of := func(name string) link.Sizes {
		all, err := w.links.SizedDevices()
		if err != nil {
			w.t.Fatal(err)
		}
		for _, d := range all {
			if d.Name == name {
				return d.Sizes
			}
		}
		w.t.Fatalf("no device %s", name)
		return link.Sizes{}
	}
	nstest.Inside(w.t, ns, func() error { pod = of("eth0"); return nil })
	return of(ep.HostIfName), pod
}

func indexIn(t *testing.T, l *link.Links, name string) int {
	t.Helper()
	index, err := l.ByName(name)
	if err != nil || index == 0 {
		t.Fatalf("device %s: %d, %v", name, index, err)
	}
	return index
}

// Faults: a pod that runs keeps the bounds of its birth when BIG TCP is switched
// on or off; one that is new does not get them; an agent that was restarted
// meanwhile, or that was killed between the two ends, believes that all is done.
func TestFollowBigTCP(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		if all, err := w.links.SizedDevices(); err != nil || all[0].GSO4 == 0 {
			t.Skipf("this kernel has no BIG TCP of IPv4, which came with Linux 6.3: %v", err)
		}
		on := link.BigTCP{IPv4: 196608, IPv6: 131072}
		m := w.manager()
		ns := nstest.Netns(t)
		ep := w.add(m, "web", ns)
		same := func(want link.BigTCP) {
			t.Helper()
			if host, pod := w.sizes(ep, ns); host != want.Sizes() || pod != want.Sizes() {
				t.Errorf("host %+v, pod %+v, want %+v", host, pod, want.Sizes())
			}
		}
		same(link.BigTCP{})
		for _, b := range []link.BigTCP{on, {}, {IPv4: 100000}, on} {
			w.big = b
			if err := m.FollowBigTCP(t.Context()); err != nil {
				t.Fatal(err)
			}
			same(b)
			reach(t, ep)
		}
		other := nstest.Netns(t)
		late := w.add(m, "late", other)
		if host, pod := w.sizes(late, other); host != on.Sizes() || pod != on.Sizes() {
			t.Errorf("a new pod: host %+v, pod %+v", host, pod)
		}
		w.del(m, "late")
		w.big = link.BigTCP{}
		m = w.manager() // restarted, with another setting
		same(on)
		// Killed after the pod's end.
		nstest.Inside(t, ns, func() error {
			return w.links.SetSizes(indexIn(t, w.links, "eth0"), link.BigTCP{}.Sizes())
		})
		if err := m.FollowBigTCP(t.Context()); err != nil {
			t.Fatal(err)
		}
		same(link.BigTCP{})
		w.del(m, "web")
		w.reap(m)
	})
}
