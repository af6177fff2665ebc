// SPDX-License-Identifier: Apache-2.0

//go:build linux

package kubeproxy_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/datapath/link/nstest"
	"github.com/weft-net/weft/internal/kubeproxy"
)

func TestMain(m *testing.M) { os.Exit(nstest.Main(m.Run)) }

// others are rules that are not kube-proxy's: the kubelet's, Docker's, those of
// the portmap plugin and of kube-router, some of which look like kube-proxy's.
const others = `*nat
:CNI-HOSTPORT-DNAT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-MARK-DROP - [0:0]
:KUBE-SEP-SHORT - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A OUTPUT -m addrtype --dst-type LOCAL -m comment --comment "before -j KUBE-SERVICES" -j CNI-HOSTPORT-DNAT
-A POSTROUTING -o docker0 -m comment --comment "a \"quoted\" word" -j MASQUERADE --random-fully
-A KUBE-MARK-DROP -j MARK --set-xmark 0x8000/0x8000
COMMIT
*filter
:DOCKER-USER - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-NWPLCY-DEFAULT - [0:0]
:KUBE-POD-FW-ABCDEFGHIJKLMNOP - [0:0]
:KUBE-ROUTER-INPUT - [0:0]
-A INPUT -j KUBE-FIREWALL
-A INPUT -m comment --comment KUBE-SERVICES
-A INPUT -m comment --comment "kube-router netpol" -j KUBE-ROUTER-INPUT
-A FORWARD -j DOCKER-USER
-A FORWARD -j LOG --log-prefix "see -j KUBE-FORWARD"
-A OUTPUT -j KUBE-FIREWALL
-A DOCKER-USER -p tcp -m multiport --dports 80,443 -m limit --limit 5/min -j RETURN
-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP
-A KUBE-ROUTER-INPUT -j KUBE-POD-FW-ABCDEFGHIJKLMNOP
COMMIT
*mangle
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
-A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
COMMIT
`

// left is what kube-proxy leaves, in iptables mode and from older releases. The
// chains jump to each other.
const left = `*nat
:KUBE-EXT-ABCDEFGHIJKLMNO2 - [0:0]
:KUBE-FW-ABCDEFGHIJKLMNO2 - [0:0]
:KUBE-LOAD-BALANCER - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-SEP-ABCDEFGHIJKLMNO3 - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-ABCDEFGHIJKLMNO2 - [0:0]
:KUBE-SVL-ABCDEFGHIJKLMNO2 - [0:0]
:KUBE-XLB-ABCDEFGHIJKLMNO2 - [0:0]
-I PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
-A KUBE-SERVICES -p tcp -m comment --comment "default/web cluster IP" -m tcp --dport 80 -j KUBE-SVC-ABCDEFGHIJKLMNO2
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-NODEPORTS -p tcp -m tcp --dport 30080 -j KUBE-EXT-ABCDEFGHIJKLMNO2
-A KUBE-EXT-ABCDEFGHIJKLMNO2 -j KUBE-MARK-MASQ
-A KUBE-EXT-ABCDEFGHIJKLMNO2 -j KUBE-SVC-ABCDEFGHIJKLMNO2
-A KUBE-FW-ABCDEFGHIJKLMNO2 -g KUBE-EXT-ABCDEFGHIJKLMNO2
-A KUBE-XLB-ABCDEFGHIJKLMNO2 -j KUBE-MARK-DROP
-A KUBE-SVC-ABCDEFGHIJKLMNO2 -m statistic --mode random --probability 0.5 -j KUBE-SEP-ABCDEFGHIJKLMNO3
-A KUBE-SEP-ABCDEFGHIJKLMNO3 -j KUBE-MARK-MASQ
COMMIT
*filter
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-IPVS-FILTER - [0:0]
:KUBE-IPVS-OUT-FILTER - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SOURCE-RANGES-FIREWALL - [0:0]
-I INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-I INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS
-I FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-I OUTPUT -j KUBE-IPVS-OUT-FILTER
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-PROXY-FIREWALL -j KUBE-SOURCE-RANGES-FIREWALL
COMMIT
*mangle
:KUBE-PROXY-CANARY - [0:0]
COMMIT
`

// rules and chains of kube-proxy in left.
const leftRules, leftChains = 7, 23

func backends() []string {
	return []string{"iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"}
}

func tool(t *testing.T, stdin, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("%s is not installed", name)
	}
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, errOut.String())
	}
	return string(out)
}

// packets counts what the policies of built-in chains have seen.
var packets = regexp.MustCompile(`\[[0-9]+:[0-9]+\]`)

// saved is what a backend holds, without the time of day and packets seen.
func saved(t *testing.T, bin string) string {
	t.Helper()
	var out []string
	for line := range strings.Lines(tool(t, "", bin+"-save")) {
		if !strings.HasPrefix(line, "#") {
			out = append(out, line)
		}
	}
	return packets.ReplaceAllString(strings.Join(out, ""), "[0:0]")
}

// restore adds rules, and takes all of the backend away when the test ends.
func restore(t *testing.T, bin, rules string) {
	t.Helper()
	tool(t, rules, bin+"-restore", "-n")
	t.Cleanup(func() {
		for _, name := range []string{"nat", "filter", "mangle"} {
			tool(t, "", bin, "-t", name, "-F")
			tool(t, "", bin, "-t", name, "-X")
		}
	})
}

func find(t *testing.T) []kubeproxy.Object {
	t.Helper()
	objs, err := kubeproxy.Find(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return objs
}

// remove removes, and returns what was told of.
func remove(t *testing.T) ([]kubeproxy.Object, error) {
	t.Helper()
	var told []kubeproxy.Object
	err := kubeproxy.Remove(context.Background(), func(o kubeproxy.Object) { told = append(told, o) })
	return told, err
}

// wantRemoved removes all that is there, twice.
func wantRemoved(t *testing.T) {
	t.Helper()
	objs := find(t)
	told, err := remove(t)
	if err != nil {
		t.Errorf("remove: %v", err)
	}
	if !slices.Equal(told, objs) {
		t.Errorf("removed %v, found before: %v", told, objs)
	}
	if objs := find(t); len(objs) > 0 {
		t.Errorf("still there: %v", objs)
	}
	if told, err := remove(t); err != nil || len(told) > 0 {
		t.Errorf("a second time: removed %v, error %v", told, err)
	}
}

// TestIptables guards against rules of kube-proxy that stay in one of the two
// backends or of the families, and against any change to rules of others.
func TestIptables(t *testing.T) {
	nstest.Require(t)
	for _, bin := range backends() {
		t.Run(bin, func(t *testing.T) {
			restore(t, bin, others)
			before := saved(t, bin)
			if objs := find(t); len(objs) > 0 {
				t.Fatalf("rules of others are taken for kube-proxy's: %v", objs)
			}
			restore(t, bin, left)
			if got, want := kubeproxy.Count(find(t)), fmt.Sprintf("%d rules, %d chains", leftRules, leftChains); got != want {
				t.Errorf("found %s, want %s", got, want)
			}
			wantRemoved(t)
			if after := saved(t, bin); after != before {
				t.Errorf("rules before kube-proxy:\n%s\nafter its removal:\n%s", before, after)
			}
		})
	}
}

// TestForeignRuleKeepsChain guards against a chain that is emptied or missing
// under the rule of somebody else, and against one such rule that keeps all else.
func TestForeignRuleKeepsChain(t *testing.T) {
	nstest.Require(t)
	for _, bin := range backends() {
		t.Run(bin, func(t *testing.T) {
			restore(t, bin, others+left)
			const foreign = "-A CNI-HOSTPORT-DNAT -p tcp -j KUBE-EXT-ABCDEFGHIJKLMNO2\n"
			restore(t, bin, "*nat\n"+foreign+"COMMIT\n")
			told, err := remove(t)
			stay := []string{"KUBE-EXT-ABCDEFGHIJKLMNO2", "KUBE-MARK-MASQ", "KUBE-SVC-ABCDEFGHIJKLMNO2", "KUBE-SEP-ABCDEFGHIJKLMNO3"}
			if got, want := kubeproxy.Count(told), fmt.Sprintf("%d rules, %d chains", leftRules, leftChains-len(stay)); got != want {
				t.Errorf("removed %s, want %s", got, want)
			}
			if err == nil {
				t.Fatal("no error tells what stays")
			}
			after := saved(t, bin)
			for _, c := range stay {
				if !strings.Contains(err.Error(), "chain "+c+" ("+bin+" nat)") {
					t.Errorf("the error does not name %s: %v", c, err)
				}
				if !strings.Contains(after, ":"+c+" ") || !strings.Contains(after, "-A "+c+" ") {
					t.Errorf("chain %s does not stay as it was:\n%s", c, after)
				}
			}
			tool(t, "", bin, strings.Fields("-t nat -D CNI-HOSTPORT-DNAT -p tcp -j KUBE-EXT-ABCDEFGHIJKLMNO2")...)
			wantRemoved(t)
		})
	}
}

// TestOneFailure guards against one object that cannot be removed and keeps all
// others, and against an error that does not name it.
func TestOneFailure(t *testing.T) {
	nstest.Require(t)
	const bin = "iptables-nft"
	restore(t, bin, others+left)
	path, err := exec.LookPath(bin + "-restore")
	if err != nil {
		t.Skipf("%s is not installed", bin)
	}
	dir := t.TempDir()
	script := `#!/bin/sh
in=$(cat)
case "$in" in *"-X KUBE-SVL-ABCDEFGHIJKLMNO2"*|*"-D INPUT -m comment"*) echo "not today" >&2; exit 4;; esac
printf '%s\n' "$in" | ` + path + ` "$@"
`
	if err := os.WriteFile(filepath.Join(dir, bin+"-restore"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	orig := os.Getenv("PATH")
	t.Setenv("PATH", dir+":"+orig)
	told, err := remove(t)
	// The chain that the rule jumps to stays with it.
	if got, want := kubeproxy.Count(told), fmt.Sprintf("%d rules, %d chains", leftRules-1, leftChains-2); got != want {
		t.Errorf("removed %s, want %s", got, want)
	}
	for _, w := range []string{
		"chain KUBE-SVL-ABCDEFGHIJKLMNO2 (iptables-nft nat): iptables-nft-restore", "not today",
		`rule -A INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS (iptables-nft filter)`,
		"chain KUBE-NODEPORTS (iptables-nft filter): the rule",
	} {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("the error does not say %q: %v", w, err)
		}
	}
	if err != nil && strings.Contains(err.Error(), "chain KUBE-FORWARD") {
		t.Errorf("the error names what went: %v", err)
	}
	t.Setenv("PATH", orig)
	wantRemoved(t)
}

// TestUnreadableTable guards against a table that counts as empty because iptables
// cannot read what somebody else has put there.
func TestUnreadableTable(t *testing.T) {
	nstest.Require(t)
	restore(t, "iptables-nft", "*nat\n:KUBE-SERVICES - [0:0]\nCOMMIT\n*filter\n:KUBE-FORWARD - [0:0]\n:MINE - [0:0]\nCOMMIT\n")
	tool(t, "", "nft", "add", "rule", "ip", "nat", "KUBE-SERVICES", "ct", "state", "established", "accept")
	told, err := remove(t)
	if got := kubeproxy.Count(told); got != "1 chain" {
		t.Errorf("removed %s of the other table", got)
	}
	if err == nil || !strings.Contains(err.Error(), "1 chains stay in iptables-nft nat, KUBE-SERVICES among them") {
		t.Errorf("the error does not name the table: %v", err)
	}
	tool(t, "", "nft", "add", "rule", "ip", "filter", "MINE", "ct", "state", "established", "accept")
	if _, err := kubeproxy.Find(context.Background()); err == nil || strings.Contains(err.Error(), "filter") {
		t.Errorf("a table without anything of kube-proxy is named too: %v", err)
	}
	tool(t, "", "nft", "flush", "chain", "ip", "filter", "MINE")
	tool(t, "", "nft", "flush", "chain", "ip", "nat", "KUBE-SERVICES")
	wantRemoved(t)
}

// TestNFTables guards against tables that stay, and against those of others whose
// names look alike.
func TestNFTables(t *testing.T) {
	nstest.Require(t)
	const mine = "table ip kube-proxy-mine { chain c { type nat hook prerouting priority 0; }; }\ntable inet kube-proxy { set s { type ipv4_addr; }; }\n"
	tool(t, mine, "nft", "-f", "-")
	t.Cleanup(func() { tool(t, "", "nft", "flush", "ruleset") })
	before := tool(t, "", "nft", "list", "ruleset")
	tool(t, `table ip kube-proxy { map m { type ipv4_addr : verdict; elements = { 10.96.0.1 : goto c }; }; chain c { return; }; chain n { type nat hook prerouting priority dstnat; ip daddr vmap @m; }; }
table ip6 kube-proxy { chain n { type nat hook output priority -100; }; }
`, "nft", "-f", "-")
	if got := kubeproxy.Count(find(t)); got != "2 tables" {
		t.Errorf("found %s", got)
	}
	wantRemoved(t)
	if after := tool(t, "", "nft", "list", "ruleset"); after != before {
		t.Errorf("before kube-proxy:\n%s\nafter its removal:\n%s", before, after)
	}
}

func ipset(t *testing.T, name, typ string, ports ...uint16) {
	t.Helper()
	o := netlink.IpsetCreateOptions{}
	if typ == "bitmap:port" {
		o.PortFrom, o.PortTo = 0, 65535
	}
	if err := netlink.IpsetCreate(name, typ, o); err != nil {
		t.Fatalf("set %s: %v", name, err)
	}
	t.Cleanup(func() { _ = netlink.IpsetDestroy(name) })
	for _, p := range ports {
		// The library sends a protocol along, which a bitmap of ports does not take.
		req := nl.NewNetlinkRequest(nl.IPSET_CMD_ADD|unix.NFNL_SUBSYS_IPSET<<8, nl.GetIpsetFlags(nl.IPSET_CMD_ADD))
		req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_NETLINK})
		req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_PROTOCOL, nl.Uint8Attr(nl.IPSET_PROTOCOL)))
		req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_SETNAME, nl.ZeroTerminated(name)))
		data := nl.NewRtAttr(nl.IPSET_ATTR_DATA|unix.NLA_F_NESTED, nil)
		data.AddRtAttr(nl.IPSET_ATTR_PORT|unix.NLA_F_NET_BYTEORDER, binary.BigEndian.AppendUint16(nil, p))
		req.AddData(data)
		if _, err := req.Execute(unix.NETLINK_NETFILTER, 0); err != nil {
			t.Fatalf("set %s: port %d: %v", name, p, err)
		}
	}
}

func dummy(t *testing.T, name string, addrs ...string) {
	t.Helper()
	la := netlink.NewLinkAttrs()
	la.Name = name
	l := &netlink.Dummy{LinkAttrs: la}
	if err := netlink.LinkAdd(l); errors.Is(err, unix.EOPNOTSUPP) {
		t.Skip("the kernel has no dummy devices (CONFIG_DUMMY)")
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(l) })
	for _, a := range addrs {
		ip, n, err := net.ParseCIDR(a)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: n.Mask}}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDevice guards against the device of the IPVS mode and its addresses, which
// take what goes to services, and against another dummy that goes with it.
func TestDevice(t *testing.T) {
	nstest.Require(t)
	dummy(t, "kube-ipvs0", "10.96.0.1/32", "fd00:96::1/128")
	dummy(t, "kube-ipvs1", "10.96.0.2/32")
	if got := kubeproxy.Count(find(t)); got != "1 device" {
		t.Errorf("found %s: %v", got, find(t))
	}
	wantRemoved(t)
	if _, err := netlink.LinkByName("kube-ipvs1"); err != nil {
		t.Errorf("somebody else's device: %v", err)
	}
}

// TestSets guards against sets of the IPVS mode that stay, against the removal of
// others' (kube-router's begin alike), and against a set in use that keeps the rest.
func TestSets(t *testing.T) {
	nstest.Require(t)
	ipset(t, "KUBE-CLUSTER-IP", "hash:ip,port")
	ipset(t, "KUBE-6-LOAD-BALANCER-SOURCE-CID", "hash:ip,port,net")
	ipset(t, "KUBE-NODE-PORT-TCP", "bitmap:port", 30080)
	ipset(t, "KUBE-SRC-ABCDEFGHIJKLMNOP", "hash:ip")
	if got := kubeproxy.Count(find(t)); got != "3 sets" {
		t.Errorf("found %s: %v", got, find(t))
	}
	if ports, err := kubeproxy.NodePorts(); err != nil || !ports["TCP"][30080] || ports["TCP"][30081] || ports["UDP"][30080] {
		t.Errorf("node ports of the set: %v, %v", ports, err)
	}
	restore(t, "iptables-nft", "*filter\n:MINE - [0:0]\n-A MINE -m set --match-set KUBE-CLUSTER-IP dst,dst -j DROP\nCOMMIT\n")
	told, err := remove(t)
	if got := kubeproxy.Count(told); got != "2 sets" {
		t.Errorf("removed %s: %v", got, told)
	}
	if err == nil || !strings.Contains(err.Error(), "set KUBE-CLUSTER-IP") || !strings.Contains(err.Error(), "remove that rule") {
		t.Errorf("error %v does not name the set that is in use", err)
	}
	tool(t, "", "iptables-nft", "-F", "MINE")
	wantRemoved(t)
	if _, err := netlink.IpsetList("KUBE-SRC-ABCDEFGHIJKLMNOP"); err != nil {
		t.Errorf("somebody else's set: %v", err)
	}
}

// TestDeviceOfSomebodyElse guards against a device that only has the name.
func TestDeviceOfSomebodyElse(t *testing.T) {
	nstest.Require(t)
	nstest.Bridge(t, "kube-ipvs0")
	if objs := find(t); len(objs) > 0 {
		t.Errorf("taken for kube-proxy's: %v", objs)
	}
}

// TestMissingTools guards against a look that finds nothing because it could not
// look, and against the legacy variant that is missed where nobody uses it.
func TestMissingTools(t *testing.T) {
	nstest.Require(t)
	t.Setenv("PATH", t.TempDir())
	_, err := kubeproxy.Find(context.Background())
	for _, bin := range []string{"iptables-nft-save", "ip6tables-nft-save", "nft"} {
		if err == nil || !strings.Contains(err.Error(), `"`+bin+`"`) {
			t.Errorf("the error does not name %s: %v", bin, err)
		}
	}
	nstest.Inside(t, nstest.Netns(t), func() error {
		if _, err := kubeproxy.Find(context.Background()); err == nil || strings.Contains(err.Error(), "legacy") {
			t.Errorf("a node without the legacy variant: %v", err)
		}
		return nil
	})
}

// TestLegacyIsNotLoaded guards against a look that loads the legacy variant of
// iptables into a node that does not use it.
func TestLegacyIsNotLoaded(t *testing.T) {
	nstest.Require(t)
	nstest.Inside(t, nstest.Netns(t), func() error {
		find(t)
		b, err := os.ReadFile("/proc/thread-self/net/ip_tables_names")
		if len(b) > 0 {
			t.Errorf("loaded: %s", b)
		}
		if os.IsNotExist(err) {
			return nil
		}
		return err
	})
}
