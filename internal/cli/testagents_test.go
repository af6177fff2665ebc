// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"slices"
	"testing"

	"github.com/weft-net/weft/internal/connectivity"
)

// TestIdleHooks guards against a native network whose test fails because no
// tunnel carries anything, and a tunnel that nothing goes through unnoticed.
func TestIdleHooks(t *testing.T) {
	after := map[string]uint64{"from_pod": 1, "to_pod": 1, "from_net": 1, "to_net": 1}
	native, tunnel := connectivity.NetworkOf(map[string]string{"routing-mode": "native"}), connectivity.NetworkOf(map[string]string{"routing-mode": "tunnel"})
	for _, n := range []*connectivity.Network{nil, &native} {
		if idle := idleHooks(n, nil, after); len(idle) > 0 {
			t.Errorf("%v: idle: %v", n, idle)
		}
	}
	if idle, want := idleHooks(&tunnel, nil, after), []string{"from_overlay", "to_overlay"}; !slices.Equal(idle, want) {
		t.Errorf("%s: idle: %v, want %v", tunnel, idle, want)
	}
}
