// SPDX-License-Identifier: Apache-2.0

// Package kubeproxy finds and removes what kube-proxy leaves in a network
// namespace when it ends, and tells whether it still runs there. It works on the
// namespace of the calling process.
//
// Iptables and nftables are spoken to through their programs, which Weft's image
// has: the legacy variant of iptables has no interface of the kernel that a
// library serves, rules of the nft variant are laid out as its programs please,
// and one way for both is simpler than two. Programs delete rules one by one in a
// transaction, so that those of others stay byte for byte. Sets, devices and
// IPVS go through netlink: the image lacks their programs.
//
// IPVS is listed from proc and spoken to with one message of ours: the library for
// it runs modprobe and logs by itself.
//
// Nothing is removed but what kube-proxy has made by name. Connection tracking is
// not touched: what it has translated it goes on translating, as long as some
// chain of type nat is there for either family.
package kubeproxy

import (
	"fmt"
	"slices"
	"strings"
)

// Kind is what sort of thing an Object is.
type Kind string

// What kube-proxy leaves.
const (
	KindRule    Kind = "rule"            // of a built-in chain of iptables
	KindChain   Kind = "chain"           // of iptables
	KindTable   Kind = "table"           // of nftables
	KindService Kind = "virtual service" // of IPVS
	KindDevice  Kind = "device"
	KindSet     Kind = "set" // of ipset
)

// kinds are all of them, in the order in which they are removed: nothing goes
// before what uses it.
func kinds() []Kind {
	return []Kind{KindRule, KindChain, KindTable, KindService, KindDevice, KindSet}
}

// Object is one thing that kube-proxy left.
type Object struct {
	Kind  Kind   `json:"kind"`
	Where string `json:"where"` // iptables-nft nat, nftables, IPVS, ...
	Name  string `json:"name"`
}

func (o Object) String() string { return fmt.Sprintf("%s %s (%s)", o.Kind, o.Name, o.Where) }

// TableHeader names the columns of TableRow.
func (Object) TableHeader() []string { return []string{"KIND", "WHERE", "NAME"} }

// TableRow renders the object.
func (o Object) TableRow() []string { return []string{string(o.Kind), o.Where, o.Name} }

// Count says in words how many objects of which kind there are: 3 rules, 1 table.
func Count(objs []Object) string {
	n := map[Kind]int{}
	for _, o := range objs {
		n[o.Kind]++
	}
	var parts []string
	for _, k := range kinds() {
		switch n[k] {
		case 0:
		case 1:
			parts = append(parts, "1 "+string(k))
		default:
			parts = append(parts, fmt.Sprintf("%d %ss", n[k], k))
		}
	}
	if len(parts) == 0 {
		return "nothing"
	}
	return strings.Join(parts, ", ")
}

// hashLen is how long the hash in the name of a chain of a service or endpoint is,
// in characters of base32.
const hashLen = 16

// ownChain says whether kube-proxy makes a chain of this name, in any of its
// modes and releases from 1.24 on. The kubelet's chains are not among them
// (KEP-3178: KUBE-FIREWALL, KUBE-KUBELET-CANARY, KUBE-IPTABLES-HINT and, until
// 1.27, KUBE-MARK-DROP), nor are those of others whose names begin alike, such as
// kube-router's.
func ownChain(name string) bool {
	rest, ok := strings.CutPrefix(name, "KUBE-")
	if !ok {
		return false
	}
	switch rest {
	case "SERVICES", "NODEPORTS", "EXTERNAL-SERVICES", "FORWARD", "POSTROUTING", "MARK-MASQ", "PROXY-FIREWALL", "PROXY-CANARY",
		// of the IPVS mode
		"LOAD-BALANCER", "NODE-PORT", "SOURCE-RANGES-FIREWALL", "IPVS-FILTER", "IPVS-OUT-FILTER":
		return true
	}
	kind, hash, ok := strings.Cut(rest, "-")
	return ok && slices.Contains([]string{"SVC", "SVL", "SEP", "EXT", "FW", "XLB"}, kind) && len(hash) == hashLen &&
		strings.Trim(hash, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") == ""
}

// device is what the IPVS mode puts services' addresses on.
const device = "kube-ipvs0"

// maxSetName is how long the name of a set may be, in bytes (IPSET_MAXNAMELEN
// less its end); longer ones are cut by kube-proxy.
const maxSetName = 31

// nodePortSets hold the node ports of the IPVS mode, by protocol.
func nodePortSets() map[string]string {
	return map[string]string{
		"TCP": "NODE-PORT-TCP", "UDP": "NODE-PORT-UDP", "SCTP": "NODE-PORT-SCTP-HASH",
	}
}

// ownSets are the sets of the IPVS mode, for both families.
func ownSets() []string {
	var out []string
	for _, n := range []string{
		"CLUSTER-IP", "LOOP-BACK", "EXTERNAL-IP", "EXTERNAL-IP-LOCAL", "LOAD-BALANCER", "LOAD-BALANCER-FW", "LOAD-BALANCER-LOCAL",
		"LOAD-BALANCER-SOURCE-IP", "LOAD-BALANCER-SOURCE-CIDR", "NODE-PORT-TCP", "NODE-PORT-LOCAL-TCP", "NODE-PORT-UDP",
		"NODE-PORT-LOCAL-UDP", "NODE-PORT-SCTP-HASH", "NODE-PORT-LOCAL-SCTP-HASH", "HEALTH-CHECK-NODE-PORT", "IPVS-IPS",
	} {
		out = append(out, setName("", n), setName("6-", n))
	}
	return out
}

func setName(family, name string) string {
	name = "KUBE-" + family + name
	return name[:min(len(name), maxSetName)]
}
