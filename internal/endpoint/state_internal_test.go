// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/datapath/link"
	"github.com/weft-net/weft/internal/ipam"
	"github.com/weft-net/weft/internal/table"
)

func sample(id uint16) *table.Endpoint {
	return &table.Endpoint{
		ID: id, Generation: 7, Kind: table.EndpointPod, ContainerID: fmt.Sprintf("c%d", id), IfName: "eth0", Netns: "/run/netns/x",
		Namespace: "default", Pod: "web-\"0\"", PodUID: "u", HostIfName: "lxc1", HostIfIndex: 12, MAC: "02:00:00:00:00:02", HostMAC: "02:00:00:00:00:01",
		IPv4: netip.MustParseAddr("10.9.0.2"), MTU: 1400, Identity: table.IdentityInit, State: table.EndpointReady,
		CreatedAt: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC),
	}
}

// The encoder by hand must write what the decoder of the next agent reads.
func TestStateRoundTrip(t *testing.T) {
	for name, doc := range map[string]*stateDoc{
		"empty": {Version: stateVersion},
		"full": {
			Version: stateVersion, Generation: 9, LastID: 3, Endpoints: []*table.Endpoint{sample(1), sample(2)}, Retiring: []*table.Endpoint{sample(3)},
			Resting: []ipam.Released{
				{Addr: netip.MustParseAddr("10.9.0.9"), At: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)},
				{Addr: netip.MustParseAddr("fd09::9"), At: time.Date(2026, 1, 2, 3, 4, 5, 0, time.FixedZone("x", 3600))},
			},
		},
	} {
		b, err := doc.encode(nil, func(ep *table.Endpoint) ([]byte, error) { return json.Marshal(ep) }, encodeResting(doc.Resting))
		if err != nil {
			t.Fatal(err)
		}
		got, err := parseState(b)
		if err != nil {
			t.Fatalf("%s: %v: %s", name, err, b)
		}
		for i := range got.Resting {
			if !got.Resting[i].At.Equal(doc.Resting[i].At) {
				t.Errorf("%s: rests since %v, want %v", name, got.Resting[i].At, doc.Resting[i].At)
			}
			got.Resting[i].At = doc.Resting[i].At
		}
		want, _ := json.Marshal(doc)
		again, _ := json.Marshal(got)
		if name == "full" && !reflect.DeepEqual(got, doc) || len(got.Endpoints) != len(doc.Endpoints) {
			t.Errorf("%s: %s became %s", name, want, again)
		}
	}
}

// A state file may hold anything after a bad disk; only what makes sense may
// come through.
func FuzzParseState(f *testing.F) {
	doc := &stateDoc{Version: stateVersion, Endpoints: []*table.Endpoint{sample(1)}, Resting: []ipam.Released{{Addr: netip.MustParseAddr("10.9.0.9")}}}
	b, err := doc.encode(nil, func(ep *table.Endpoint) ([]byte, error) { return json.Marshal(ep) }, encodeResting(doc.Resting))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"version":1,"endpoints":[null]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		doc, err := parseState(b)
		if err != nil {
			return
		}
		var i ids
		for _, ep := range append(doc.Endpoints, doc.Retiring...) {
			if !i.take(ep.ID) {
				t.Fatalf("id %d stands twice or is none", ep.ID)
			}
			if _, err := vethOf(ep); err != nil || len(addrsOf(ep)) == 0 {
				t.Fatalf("took %+v, %v", ep, err)
			}
		}
	})
}

// What the alias says must be read back, as far as the kernel keeps it.
func TestAliasRoundTrip(t *testing.T) {
	ep := sample(77)
	ep.ContainerID = strings.Repeat("a", 64)
	ep.Pod = strings.Repeat("p", 253)
	alias := aliasOf(ep)
	got, ok := parseAlias(alias[:255])
	if !ok || got.ID != 77 || got.Generation != 7 || got.ContainerID != ep.ContainerID || got.IfName != "eth0" || got.Kind != table.EndpointPod ||
		got.Namespace != "default" || !strings.HasPrefix(ep.Pod, got.Pod) {
		t.Errorf("%s became %+v, %v", alias, got, ok)
	}
	for _, bad := range []string{"", "weft:", "other:id=1 gen=1 kind=pod cid=c if=e", "weft:id=70000 gen=1 kind=pod cid=c if=e", "weft:id=1 gen=x", "weft:id=0 gen=1 kind=pod cid=c if=e"} {
		if _, ok := parseAlias(bad); ok {
			t.Errorf("took %q", bad)
		}
	}
}

func FuzzParseAlias(f *testing.F) {
	f.Add(aliasOf(sample(1)))
	f.Add(link.AliasPrefix + "id=1 gen=2 kind=pod cid=c if=eth0 name=a/b")
	f.Fuzz(func(t *testing.T, s string) {
		ep, ok := parseAlias(s)
		if !ok {
			return
		}
		if again, ok := parseAlias(aliasOf(&ep)); !ok || again != ep {
			t.Fatalf("%+v became %+v", ep, again)
		}
	})
}

// An id must rest as long as possible, and its next use be told from the last.
func TestIDs(t *testing.T) {
	var i ids
	i.advance(0, time.Unix(1000, 0))
	seen := map[uint16]uint32{}
	for n := range maxID {
		id, gen, err := i.next()
		if err != nil || id != uint16(n+1) {
			t.Fatalf("got %d, %v", id, err)
		}
		seen[id] = gen
	}
	if _, _, err := i.next(); err == nil || !strings.Contains(err.Error(), "4095") {
		t.Errorf("got %v", err)
	}
	i.free(7)
	i.free(7)
	i.free(5)
	for _, want := range []uint16{5, 7} {
		id, gen, err := i.next()
		if err != nil || id != want || gen <= seen[id] {
			t.Errorf("got %d of generation %d, %v; it had %d", id, gen, err, seen[id])
		}
	}
	var lost ids
	lost.advance(0, time.Unix(1_800_000_000, 0))
	if _, gen, _ := lost.next(); gen <= seen[1] {
		t.Errorf("generation %d after the state was lost", gen)
	}
}
