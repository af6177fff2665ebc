// SPDX-License-Identifier: Apache-2.0

package connectivity_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net/netip"
	"os"
	"testing"

	"github.com/weft-net/weft/internal/connectivity"
	"github.com/weft-net/weft/internal/table"
)

func helperMTU() int {
	var nodes []table.Node
	if err := json.NewDecoder(os.Stdin).Decode(&nodes); err != nil {
		return fail(err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(connectivity.PathMTUs(context.Background(), nodes)); err != nil {
		return fail(err)
	}
	return 0
}

// TestPathMTUs guards against a path that eats large packets and looks sound to
// pings, against one that is called a black hole though its router says what
// fits, and against figures that are off by a header.
func TestPathMTUs(t *testing.T) {
	noICMP := []string{
		"nft add table inet t", "nft add chain inet t o { type filter hook output priority 0 ; }",
		"nft add rule inet t o icmp type destination-unreachable drop", "nft add rule inet t o icmpv6 type packet-too-big drop",
	}
	narrow := []string{"ip link set s mtu 1401"}
	for _, tc := range []struct {
		name           string
		router, server []string
		largest        int
		verdict        string
	}{
		{name: "sound", largest: 1500, verdict: connectivity.PathFits},
		{name: "router tells", router: narrow, largest: 1401, verdict: connectivity.PathTold},
		{name: "router silent", router: append(narrow, noICMP...), largest: 1401, verdict: connectivity.PathSilent},
		// A far end that knows its way to be narrower answers in pieces: that is its own row.
		{name: "the way back is known to be narrow", server: []string{"ip route change default via 10.77.2.1 mtu lock 1300", "ip -6 route change default via fd77:2::1 mtu 1300"}, largest: 1500, verdict: connectivity.PathFits},
		{name: "dead", router: []string{"ip link set s down"}, verdict: connectivity.PathDead},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			l := newLine(t)
			l.do(l.router, tc.router...)
			l.do(l.server, tc.server...)
			for _, p := range l.pathMTUs() {
				if p.Largest != tc.largest || p.Verdict != tc.verdict || p.Route != 1500 {
					t.Errorf("got %+v, want %d and %q", p, tc.largest, tc.verdict)
				}
			}
		})
	}
}

func (l *line) pathMTUs() []connectivity.PathMTU {
	l.t.Helper()
	cmd := helper("mtu", []table.Node{
		{Name: "client", Local: true, Addrs: []netip.Addr{netip.MustParseAddr("10.77.1.2")}},
		{
			Name: "server", Addrs: []netip.Addr{netip.MustParseAddr("10.77.2.2")},
			HealthIPs: []netip.Addr{netip.MustParseAddr("fd77:2::2")},
		},
	})
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := start(l.client, cmd)
	if err == nil {
		err = cmd.Wait()
	}
	var paths []connectivity.PathMTU
	if err == nil {
		err = json.Unmarshal(out.Bytes(), &paths)
	}
	if err != nil || len(paths) != 2 {
		l.t.Fatalf("%v: %s%s", err, out.String(), errOut.String())
	}
	return paths
}
