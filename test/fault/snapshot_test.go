// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/weft-net/weft/test/fault/labtest"
)

// snapshot is what a node holds of everything that a network touches: a section
// a kind, sorted lines in each.
type snapshot map[string][]string

// sections are shell commands that print one line a thing. What changes on a
// node that nobody touches is left out, and only that:
//   - counters, ages and indexes,
//   - neighbours that the kernel learned (permanent ones stay in),
//   - below /proc/sys/net: figures that count (nf_conntrack_count), are made up
//     anew at each boot (stable_secret, keys), or belong to a device that comes
//     and goes with a pod's sandbox,
//   - what belongs to containerd and kubelet: their mounts and folders, and the
//     namespaces of sandboxes (cni-*),
//   - /run/xtables.lock, which all users of iptables share: whoever comes first
//     makes it, and nobody may delete it, as another may hold it.
var sections = []struct{ name, script string }{
	{"pins", `find /sys/fs/bpf -mindepth 1`},
	{"tcx", toolPath + ` hooks | sed -E 's/ [0-9]+$//'`},
	{"hooks", `bpftool net show | sed -E 's/ id [0-9]+//; s/ (prog|link)_id [0-9]+//g; s/\([0-9]+\)/()/'`},
	{"cgroup programs", `for d in /sys/fs/cgroup /sys/fs/cgroup/unified; do bpftool cgroup tree $d 2>/dev/null | sed -E 's/^[0-9]+ +//' || true; done`},
	{"links", `ip -o -d link show | sed -E 's/^[0-9]+: //; s/ (tx|rx|numtxqueues|numrxqueues)[a-z_0-9]* [0-9]+//g; s/@if[0-9]+/@if/; s/ group [a-z]+//; s/ (port_id|switchid|portid) .*//'`},
	{"aliases", `ip link show | grep -o 'alias .*' || true`},
	{"addresses", `ip -o addr show | sed -E 's/^[0-9]+: //; s/ valid_lft.*//; s/\\.*//'`},
	{"routes", `ip -4 route show table all; ip -6 route show table all | sed -E 's/ expires [0-9]+sec//'`},
	{"rules", `ip -4 rule show; ip -6 rule show`},
	{"neighbours", `ip neigh show nud permanent; ip -6 neigh show proxy; ip -4 neigh show proxy`},
	{"nftables", `nft -s list ruleset 2>/dev/null | sed -E 's/counter packets [0-9]+ bytes [0-9]+/counter/'`},
	{"iptables", `for c in iptables-save ip6tables-save; do $c 2>/dev/null | sed -E '/^#/d; s/\[[0-9]+:[0-9]+\]//'; done`},
	{"qdiscs", `tc qdisc show | sed -E 's/ refcnt [0-9]+//'`},
	{"namespaces", `ls /run/netns 2>/dev/null | grep -v '^cni-' || true`},
	{"sysctls", `find /proc/sys/net -type f ! -name flush | sort | grep -vE '/(lxc|veth)|nf_conntrack_count|stable_secret|tcp_fastopen_key|_key$' | while read -r f; do printf '%s = ' "$f"; tr '\n' ' ' <"$f" 2>/dev/null || true; echo; done`},
	{"configuration", `find /etc/cni -mindepth 1 -exec sh -c 'for f; do if [ -f "$f" ]; then sha256sum "$f"; else echo "$f"; fi; done' sh {} +`},
	{"plugins", `find /opt/cni -mindepth 1 -exec sh -c 'for f; do if [ -f "$f" ]; then sha256sum "$f"; else echo "$f"; fi; done' sh {} +`},
	{"run", `find /run -mindepth 1 -maxdepth 1 ! -name xtables.lock; find /run/weft* -mindepth 1 2>/dev/null | grep -v '^/run/weft-fault' || true`},
	{"var", `find /var/lib /var/log -maxdepth 2 | grep -iE 'weft|cilium' | grep -vE '^/var/lib/weft-lab|^/var/log/(pods|containers)/' || true`},
	{"mounts", `awk '{print $5, $4}' /proc/self/mountinfo | grep -vE '/var/lib/(kubelet|containerd)/|/run/containerd/|/run/netns/cni-'`},
	{"modules' hooks", `cat /proc/net/netfilter/nf_log 2>/dev/null; cat /proc/net/ip_tables_names /proc/net/ip6_tables_names 2>/dev/null || true`},
}

func takeSnapshot(t *testing.T, l *labtest.Lab, node string) snapshot {
	t.Helper()
	pushTool(t, l, node)
	s := snapshot{}
	for _, sec := range sections {
		lines := strings.Split(l.Shell(t, node, sec.script), "\n")
		lines = slices.DeleteFunc(lines, func(line string) bool { return strings.TrimSpace(line) == "" })
		slices.Sort(lines)
		s[sec.name] = lines
	}
	if len(s["links"]) == 0 || len(s["sysctls"]) < 100 || len(s["mounts"]) == 0 {
		t.Fatalf("node %s: the snapshot is empty: %d links, %d settings", node, len(s["links"]), len(s["sysctls"]))
	}
	return s
}

// diff lists what one snapshot has and the other does not.
func (s snapshot) diff(later snapshot) []string {
	var out []string
	for _, sec := range sections {
		count := map[string]int{}
		for _, line := range s[sec.name] {
			count[line]--
		}
		for _, line := range later[sec.name] {
			count[line]++
		}
		for line, n := range count {
			switch {
			case n > 0:
				out = append(out, fmt.Sprintf("%s: left: %s", sec.name, line))
			case n < 0:
				out = append(out, fmt.Sprintf("%s: gone: %s", sec.name, line))
			}
		}
	}
	slices.Sort(out)
	return out
}
