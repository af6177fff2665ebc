// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/rpc"
)

// plant is an entry that was overwritten or added by hand.
type plant struct {
	m    *ebpf.Map
	name string
	key  []byte
	was  []byte // nil: there was none
}

func (p plant) String() string { return fmt.Sprintf("%s[%x]", p.name, p.key) }

// there tells whether the garbage is.
func (p plant) there(t *testing.T) bool {
	t.Helper()
	now, err := p.m.LookupBytes(p.key)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		t.Fatal(err)
	}
	return now != nil && !bytes.Equal(now, p.was)
}

// counters hold no state that an agent could put right.
var counters = []string{"weft_metrics", "weft_rate", "weft_events", "weft_ways"}

// plantGarbage overwrites some entries of each pinned map with noise and adds others.
func plantGarbage(t *testing.T, root string, r *rand.Rand) []plant {
	t.Helper()
	var all []plant
	for _, name := range maps.Names() {
		if slices.Contains(counters, name) {
			continue
		}
		m, err := ebpf.LoadPinnedMap(filepath.Join(root, "maps", name), nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = m.Close() })
		n := 0
		for _, key := range garbageKeys(t, m, r) {
			p := plant{m: m, name: name, key: key}
			if p.was, err = m.LookupBytes(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				t.Fatal(err)
			}
			if err := m.Put(key, garbageValue(name, p.was, int(m.ValueSize()), r)); err != nil {
				t.Fatalf("%s: %v", p, err)
			}
			all, n = append(all, p), n+1
		}
		if n == 0 {
			t.Errorf("map %s: nothing planted", name)
		}
	}
	return all
}

// garbageKeys returns keys that a map has, and, where it takes any, others.
func garbageKeys(t *testing.T, m *ebpf.Map, r *rand.Rand) [][]byte {
	t.Helper()
	var keys [][]byte
	for key, err := m.NextKeyBytes(nil); key != nil && len(keys) < 4; key, err = m.NextKeyBytes(key) {
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, key)
	}
	if m.Type() == ebpf.Array {
		return keys
	}
	for range min(8, int(m.MaxEntries())-len(keys)) {
		key := noise(int(m.KeySize()), r)
		if m.Type() == ebpf.LPMTrie {
			// The kernel keeps the bits behind the prefix: a full one has none.
			binary.NativeEndian.PutUint32(key, 8*(m.KeySize()-4))
		}
		keys = append(keys, key)
	}
	return keys
}

// garbageValue is noise, but for what nothing but the map knows.
func garbageValue(name string, was []byte, size int, r *rand.Rand) []byte {
	v := noise(size, r)
	if name == "weft_cfg" {
		const seed = 100 // offset of nat_seed in struct weft_config
		copy(v[seed:seed+4], was[seed:seed+4])
	}
	return v
}

func noise(n int, r *rand.Rand) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// Guards against an agent that believes what it finds in the maps: after a start
// none of them holds what a hand or another program wrote there, and pods have
// their network.
func TestGarbageInMaps(t *testing.T) {
	if !node(t) {
		return
	}
	o, _ := newNode(t, map[string]string{
		"enable-bpf-masquerade": "true", "enable-ipv4-masquerade": "true", "enable-ipv6-masquerade": "true",
		"ipv4-native-routing-cidr": "10.244.0.0/16", "ipv6-native-routing-cidr": "fd00::/32",
	})
	api := serveAPI(t, &o)
	addNode(t, api, "n1", 1)
	addNode(t, api, "n2", 2)
	if err := Init(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	s := start(t, o)
	eventually(t, "proven", func() (bool, any) { c := s.component("Node proof"); return c.State == rpc.StateOK, c })
	one, two := addPod(t, s, nil, "one"), addPod(t, s, nil, "two")
	ping(t, one)
	eventually(t, "route to n2", func() (bool, any) {
		r := run(t, "ip", "route", "show", "10.244.2.0/24")
		return strings.Contains(r, "via 10.9.0.2"), r
	})
	s.end()

	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	plants := plantGarbage(t, o.Paths.BPF, rand.New(rand.NewPCG(seed, 0)))
	begin := time.Now()
	s = start(t, o)
	served := time.Since(begin)
	eventually(t, "garbage is gone", func() (bool, any) {
		var left []string
		for _, p := range plants {
			if p.there(t) {
				left = append(left, p.String())
			}
		}
		return len(left) == 0, left
	})
	t.Logf("%d entries planted; served after %s, clean after %s", len(plants), served, time.Since(begin))
	ping(t, one)
	ping(t, two)
	s.end()
}
