// SPDX-License-Identifier: Apache-2.0

package link_test

import (
	"testing"

	"github.com/weft-net/weft/internal/datapath/link"
	"github.com/weft-net/weft/internal/datapath/link/nstest"
)

// sizesOf asks the kernel of the namespace that the test is in.
func sizesOf(t testing.TB, l *link.Links, name string) link.SizedDevice {
	t.Helper()
	all, err := l.SizedDevices()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range all {
		if d.Name == name {
			return d
		}
	}
	t.Fatalf("no device %s", name)
	return link.SizedDevice{}
}

// needBigTCP skips a test on kernels without.
func needBigTCP(t testing.TB, l *link.Links) {
	t.Helper()
	if sizesOf(t, l, "lo").GSO4 == 0 {
		t.Skip("this kernel has no BIG TCP of IPv4, which came with Linux 6.3")
	}
}

// Guards against bounds of one family that spoil the other's: a kernel that is
// told of IPv6's at most 64 KiB sets IPv4's to the same.
func TestSetSizes(t *testing.T) {
	l := links(t)
	needBigTCP(t, l)
	nstest.Bridge(t, "node0", "192.0.2.1/24")
	v := testVeth(t, nstest.Netns(t))
	index, err := l.Create(v)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.DeleteAll() })
	const big, legacy = 196608, link.LegacySize
	if d := sizesOf(t, l, v.HostIfName); d.Most < big || d.Sizes != (link.BigTCP{}).Sizes() {
		t.Fatalf("a new veth: %+v", d)
	}
	for _, want := range []link.Sizes{
		{GSO4: big, GRO4: big, GSO6: big, GRO6: big},
		{GSO4: big, GRO4: big, GSO6: legacy, GRO6: legacy},
		{GSO4: 100000, GRO4: 200000, GSO6: 60000, GRO6: 50000},
		{GSO4: legacy, GRO4: legacy, GSO6: big, GRO6: big},
		{GSO4: legacy, GRO4: legacy, GSO6: legacy, GRO6: legacy},
	} {
		if err := l.SetSizes(index, want); err != nil {
			t.Fatal(err)
		}
		if got := sizesOf(t, l, v.HostIfName).Sizes; got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	if err := l.SetSizes(index, link.Sizes{GSO6: 1 << 30}); err == nil {
		t.Error("more than the device takes was accepted")
	}
}

// Guards against a pod whose two ends have different bounds, made so or changed
// while it runs, and against bounds of a device that is not the pod's.
func TestPodSizes(t *testing.T) {
	l := links(t)
	needBigTCP(t, l)
	ns := nstest.Netns(t)
	v := testVeth(t, ns)
	v.BigTCP = link.BigTCP{IPv4: 180000}
	index, err := l.Create(v)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.DeleteAll() })
	both := func(want link.Sizes) {
		t.Helper()
		if got := sizesOf(t, l, v.HostIfName).Sizes; got != want {
			t.Errorf("host's end: %+v, want %+v", got, want)
		}
		nstest.Inside(t, ns, func() error {
			if got := sizesOf(t, l, v.IfName).Sizes; got != want {
				t.Errorf("pod's end: %+v, want %+v", got, want)
			}
			return nil
		})
	}
	both(link.Sizes{GSO4: 180000, GRO4: 180000, GSO6: link.LegacySize, GRO6: link.LegacySize})
	for _, b := range []link.BigTCP{{IPv4: 196608, IPv6: 196608}, {}, {IPv6: 196608}} {
		if err := l.SetPodSizes(v, index, b.Sizes()); err != nil {
			t.Fatal(err)
		}
		both(b.Sizes())
	}
	other := v
	other.MAC = mac(t, "02:00:00:00:00:77")
	if err := l.SetPodSizes(other, index, (link.BigTCP{}).Sizes()); err == nil {
		t.Error("the end of another pod was changed")
	}
	both(link.BigTCP{IPv6: 196608}.Sizes())
}
