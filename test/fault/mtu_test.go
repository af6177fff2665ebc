// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/test/fault/labtest"
)

// Guards against an MTU probe that calls a path sound which eats large packets,
// or a sound one narrow: on a cluster as it is, and then with a node behind a
// wire that drops what is larger than 1300 bytes and says nothing.
func TestMTUProbeFindsBlackHole(t *testing.T) {
	l := labtest.Open(t)
	nodes := l.Nodes(t, 3)
	b := &breaker{&fixture{lab: l, nodes: nodes}}
	for _, p := range mtuProbe(t, l, 0, len(nodes)) {
		if p.Verdict != "ok" || p.Largest != p.Route {
			t.Errorf("nothing is broken: %+v", p)
		}
	}
	if t.Failed() {
		return
	}
	n3 := nodes[2].Name()
	b.labLink(t, n3, "--wire-mtu", "1300")
	// What the node behind the wire has to say does not fit through it (exit code 2: not all answered).
	for _, p := range mtuProbe(t, l, 2, len(nodes)-1) {
		narrow := p.To == n3
		if narrow != strings.Contains(p.Verdict, "vanish") || narrow && (p.Largest > 1300 || p.Largest < 1250) || !narrow && p.Largest != p.Route {
			t.Errorf("wire of %s carries 1300 bytes: %+v", n3, p)
		}
	}
}

// probedPath is a row of `weft connectivity mtu -o json`.
type probedPath struct {
	Node, To, Kind, Addr, Verdict, Error string
	Route, Largest                       int
}

// mtuProbe returns what the probe says of all paths from so many nodes to two
// others, and wants its exit code.
func mtuProbe(t *testing.T, l *labtest.Lab, code, from int) []probedPath {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	r, err := l.Weft(ctx, "connectivity", "mtu", "--node-timeout", "25s", "-o", "json")
	var paths []probedPath
	if err == nil {
		err = json.Unmarshal([]byte(r.Stdout), &paths)
	}
	if err != nil || r.Code != code {
		t.Fatalf("%v, exit code %d, want %d: %s", err, r.Code, code, r)
	}
	// Two peers each, node and pods, two families.
	if len(paths) != from*2*2*2 {
		t.Fatalf("%d paths: %s", len(paths), r.Stdout)
	}
	return paths
}
