// SPDX-License-Identifier: Apache-2.0

//go:build linux

package kubeproxy

import (
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// listing is what the kernel shows of IPVS with services of kube-proxy, of
// keepalived and by firewall mark.
const listing = `IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A600001:01BB rr  
  -> C0A80202:192B      Masq    1      2          0         
UDP  0A60000A:0035 rr  
TCP  C0A80202:7580 rr  
UDP  C0A80202:7580 rr  
TCP  C0A80263:0050 wlc persistent 300 FFFFFFFF
FWM  00000001 rr  
TCP  [fd00:0096:0000:0000:0000:0000:0000:0001]:01BB rr 
`

// TestIPVSServices guards against virtual services of kube-proxy that stay, and
// against those of keepalived that go with them.
func TestIPVSServices(t *testing.T) {
	all, err := parseIPVS(strings.NewReader(listing))
	if err != nil {
		t.Fatal(err)
	}
	own := owner{
		addrs: map[netip.Addr]bool{
			netip.MustParseAddr("10.96.0.1"): true, netip.MustParseAddr("10.96.0.10"): true, netip.MustParseAddr("fd00:96::1"): true,
		},
		ports: map[string]map[uint16]bool{"TCP": {30080: true}},
	}
	var got []string
	for _, v := range all {
		if own.has(v) {
			got = append(got, v.String())
		}
	}
	want := []string{"TCP 10.96.0.1:443", "UDP 10.96.0.10:53", "TCP 192.168.2.2:30080", "TCP [fd00:96::1]:443"}
	if !slices.Equal(got, want) {
		t.Errorf("kube-proxy's: %q, want %q", got, want)
	}
	if len(all) != 6 {
		t.Errorf("read %d services, want 6: %v", len(all), all)
	}
}

// TestIPVSGarbage guards against a list that is read past what is not understood.
func TestIPVSGarbage(t *testing.T) {
	for _, line := range []string{"TCP  0A600001 rr", "TCP  0A6000:0050 rr", "TCP  0A600001:10050 rr", "TCP  [fd00]:0050 rr"} {
		if got, err := parseIPVS(strings.NewReader(line)); err == nil {
			t.Errorf("%q is read as %v", line, got)
		}
	}
}

// TestIPVSMessage guards against a request that names another service: by
// linux/ip_vs.h, address family, protocol, address and port, nested.
func TestIPVSMessage(t *testing.T) {
	v := virtualService{"UDP", netip.MustParseAddrPort("10.96.0.10:53")}
	want := "3000" + "0100" + "0600" + "0100" + "0200" + "0000" + "0600" + "0200" + "1100" + "0000" +
		"1400" + "0300" + "0a60000a" + "000000000000000000000000" + "0600" + "0400" + "0035" + "0000"
	if got := hex.EncodeToString(v.attr().Serialize()); got != want {
		t.Errorf("message %s, want %s", got, want)
	}
}
