// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/datapath"
)

func tc(t *testing.T, args string) string {
	t.Helper()
	out, err := exec.Command("tc", strings.Fields(args)...).CombinedOutput()
	if err != nil {
		t.Fatalf("tc %s: %v: %s", args, err, out)
	}
	return string(out)
}

// TestOthersFilters guards against an agent that takes somebody else's filters,
// of whatever kind, or their clsact, off a device: the node's traffic shaping
// or firewall would be gone.
func TestOthersFilters(t *testing.T) {
	o := both
	o.Root = newRoot(t)
	d := open(t, o)
	eth := newVeth(t, "etho")
	devs := []datapath.Device{{Name: "etho", Index: eth.Attrs().Index}}
	// A qdisc without filters yet, as one made for shared use has it.
	tc(t, "qdisc add dev etho clsact")
	if err := d.SyncDevices(devs); err != nil {
		t.Fatal(err)
	}
	if q := tc(t, "qdisc show dev etho"); !strings.Contains(q, "clsact") {
		t.Fatalf("somebody's clsact is gone: %s", q)
	}
	theirs := map[string]string{ // by what `tc` shows of them
		"c6336400": "ingress prio 5 protocol ip u32 match ip src 198.51.100.0/24",
		"cb007100": "egress prio 6 protocol ip u32 match ip dst 203.0.113.0/24",
	}
	for _, f := range theirs {
		tc(t, "filter add dev etho "+f)
	}
	want := func(after string, ours bool) {
		t.Helper()
		got := tc(t, "filter show dev etho ingress") + tc(t, "filter show dev etho egress")
		for match := range theirs {
			if !strings.Contains(got, match) {
				t.Errorf("after %s the filter with %s is gone; left: %q", after, match, got)
			}
		}
		if strings.Contains(got, "weft_") != ours {
			t.Errorf("filters of ours are to be there after %s: %v; got %q", after, ours, got)
		}
	}
	step := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		want(what, false)
	}
	if err := d.SyncDevices(devs); err != nil {
		t.Fatal(err)
	}
	want("start", datapath.HaveTCX() != nil)
	step("giving the device up", d.SyncDevices(nil))
	step("detaching what is not attached", d.DetachEndpoint("etho"))
	// With a filter of ours beside them.
	if err := d.AttachEndpoint("etho", eth.Attrs().Index); err != nil {
		t.Fatal(err)
	}
	step("detaching", d.DetachEndpoint("etho"))
	if err := d.AttachEndpoint("etho", eth.Attrs().Index); err != nil {
		t.Fatal(err)
	}
	step("unloading", datapath.Unload(o.Root))
}
