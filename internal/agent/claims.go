// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/internal/table"
)

// rank orders claims on one prefix; the higher wins. What this node knows of
// itself beats what others say.
type rank int

const (
	rankPod      rank = iota // a CiliumEndpoint
	rankRange                // a node's pod range
	rankHealth               // a node's health address
	rankNode                 // another node's address
	rankEndpoint             // an endpoint of this node
	rankHost                 // an address of this node
)

// claim is what one owner says about one prefix.
type claim struct {
	row  table.IPCache // Owner set
	rank rank
	at   time.Time // between equals the younger wins
}

// wins tells whether c beats d. It is a strict order: owners differ.
func (c claim) wins(d claim) bool {
	return cmp.Or(cmp.Compare(c.rank, d.rank), c.at.Compare(d.at), cmp.Compare(c.row.Owner, d.row.Owner)) > 0
}

// claims resolves who stands behind each prefix. Each owner's claims are
// replaced as a whole, so a late word about a former owner takes away that
// owner's claims and nobody else's.
type claims struct {
	owners   map[string][]claim
	prefixes map[netip.Prefix][]claim
}

func newClaims() *claims {
	return &claims{owners: map[string][]claim{}, prefixes: map[netip.Prefix][]claim{}}
}

// set replaces the claims of owner, none removes them, and returns the prefixes
// whose winner may have changed.
func (c *claims) set(owner string, cs []claim) []netip.Prefix {
	var touched []netip.Prefix
	for _, old := range c.owners[owner] {
		p := old.row.Prefix
		rest := slices.DeleteFunc(c.prefixes[p], func(x claim) bool { return x.row.Owner == owner })
		if len(rest) == 0 {
			delete(c.prefixes, p)
		} else {
			c.prefixes[p] = rest
		}
		touched = append(touched, p)
	}
	delete(c.owners, owner)
	if len(cs) == 0 {
		return touched
	}
	c.owners[owner] = cs
	for _, n := range cs {
		c.prefixes[n.row.Prefix] = append(c.prefixes[n.row.Prefix], n)
		touched = append(touched, n.row.Prefix)
	}
	return touched
}

// winner returns the row of a prefix.
func (c *claims) winner(p netip.Prefix) (table.IPCache, bool) {
	cs := c.prefixes[p]
	if len(cs) == 0 {
		return table.IPCache{}, false
	}
	best := cs[0]
	for _, x := range cs[1:] {
		if x.wins(best) {
			best = x
		}
	}
	return best.row, true
}

// Owners of claims, as IPCache.Owner shows them.
func nodeOwner(name string) string       { return "node/" + name }
func podOwner(p *table.RemotePod) string { return "cep/" + p.Name() }
func deviceOwner(d *table.Device) string { return "device/" + d.Name }
func endpointOwner(e *table.Endpoint) string {
	return "endpoint/" + e.Name() + "/" + e.ContainerID + "/" + e.IfName
}

// families says which address families are on.
type families struct{ v4, v6 bool }

func (f families) has(a netip.Addr) bool {
	if a.Is4() {
		return f.v4
	}
	return f.v6 && a.Is6()
}

// nodeClaims are a node's addresses; of another node also its health addresses
// and, as a range, its pods: they are known as pods before each one's
// CiliumEndpoint arrives.
func nodeClaims(n *table.Node, fam families) []claim {
	var cs []claim
	add := func(r rank, p netip.Prefix, id table.Identity, kind table.HostKind, via netip.Addr) {
		if fam.has(p.Addr()) {
			cs = append(cs, claim{rank: r, row: table.IPCache{Prefix: p, Identity: id, Kind: kind, NodeAddr: via, Owner: nodeOwner(n.Name)}})
		}
	}
	for _, a := range n.Addrs {
		if n.Local {
			add(rankHost, single(a), table.IdentityHost, table.KindHost, netip.Addr{})
		} else {
			add(rankNode, single(a), table.IdentityRemoteNode, table.KindNode, netip.Addr{})
		}
	}
	if n.Local {
		return dedupe(cs)
	}
	for _, a := range n.HealthIPs {
		add(rankHealth, single(a), table.IdentityHealth, table.KindRemotePod, n.Addr(a.Is6()))
	}
	for _, p := range n.PodCIDRs {
		add(rankRange, p.Masked(), table.IdentityInit, table.KindRemotePod, n.Addr(p.Addr().Is6()))
	}
	return dedupe(cs)
}

// podClaims are the addresses of a pod of another node. Of this node's pods the
// endpoint table is the authority, so self's CiliumEndpoints claim nothing.
func podClaims(p *table.RemotePod, self *table.Node, fam families) []claim {
	if !p.NodeAddr.IsValid() || (self != nil && slices.Contains(self.Addrs, p.NodeAddr)) {
		return nil
	}
	var cs []claim
	for _, a := range p.Addrs {
		if !fam.has(a) {
			continue
		}
		id := p.Identity
		if id == table.IdentityUnknown {
			id = table.IdentityInit
		}
		cs = append(cs, claim{rank: rankPod, at: p.Created, row: table.IPCache{
			Prefix: single(a), Identity: id, Kind: table.KindRemotePod, NodeAddr: p.NodeAddr, Owner: podOwner(p),
		}})
	}
	return dedupe(cs)
}

// endpointClaims are the addresses of an endpoint of this node.
func endpointClaims(e *table.Endpoint) []claim {
	if e.State == table.EndpointDisconnecting {
		return nil
	}
	var cs []claim
	for _, a := range []netip.Addr{e.IPv4, e.IPv6} {
		if a.IsValid() {
			cs = append(cs, claim{rank: rankEndpoint, at: e.CreatedAt, row: table.IPCache{
				Prefix: single(a), Identity: e.Identity, Kind: table.KindLocalPod, EndpointID: e.ID, Owner: endpointOwner(e),
			}})
		}
	}
	return cs
}

// deviceClaims are this node's addresses on a device: all that the kernel
// delivers locally. Link-local ones mean something else on each link, and
// loopback never leaves the node.
func deviceClaims(d *table.Device, fam families) []claim {
	var cs []claim
	for _, p := range d.Addrs {
		a := p.Addr()
		if !fam.has(a) || a.IsLinkLocalUnicast() || a.IsLoopback() || a.IsMulticast() {
			continue
		}
		cs = append(cs, claim{rank: rankHost, row: table.IPCache{
			Prefix: single(a), Identity: table.IdentityHost, Kind: table.KindHost, Owner: deviceOwner(d),
		}})
	}
	return dedupe(cs)
}

// dedupe keeps one claim a prefix: an owner cannot compete with itself.
func dedupe(cs []claim) []claim {
	seen := map[netip.Prefix]bool{}
	return slices.DeleteFunc(cs, func(c claim) bool {
		dup := seen[c.row.Prefix]
		seen[c.row.Prefix] = true
		return dup
	})
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
