// SPDX-License-Identifier: Apache-2.0

package maps

import "github.com/weft-net/weft/internal/datapath/object"

// MaxEndpoints is the length of the endpoint map. Ids run from 1 to MaxEndpoints-1.
const MaxEndpoints = 4096

// Sizes are the capacities that may be chosen, in entries a family but for
// Events. A zero field takes its default. Changing one replaces the map; its
// entries are carried over.
type Sizes struct {
	CT        int `json:"ct"`        // answered connections
	CTNew     int `json:"ctNew"`     // flows that nobody has answered yet
	NAT       int `json:"nat"`       // masqueraded flows that went on after an answer
	NATNew    int `json:"natNew"`    // all other masqueraded flows
	NATClient int `json:"natClient"` // the same, of clients of services outside
	Fragments int `json:"fragments"` // datagrams in flight in pieces
	IPCache   int `json:"ipcache"`   // exact addresses: pods and nodes
	Networks  int `json:"networks"`  // prefixes
	Events    int `json:"events"`    // bytes of the ring buffer: a power of two, at least a page
	Services  int `json:"services"`  // frontends, and as many chunks of those with many backends
	Backends  int `json:"backends"`  // of both families, less one: id 0 is none
	Affinity  int `json:"affinity"`  // clients that keep their backend, of both families
	Sockets   int `json:"sockets"`   // sockets that talk to services, of both families
	LBConns   int `json:"lbConns"`   // rows of connections to services, packet by packet, that went on after an answer: two each
	LBConnNew int `json:"lbConnNew"` // rows of all others, of those from outside and of pods' each
	Maglev    int `json:"maglev"`    // parts of Maglev tables, of 984 slots and 2 KiB each; not allocated before they are used
}

// DefaultSizes suits a node with 110 pods in a cluster of 1,000 nodes. The LRU
// maps are allocated in full when made; all maps together take about 76 MiB with
// both families, 56 MiB without masquerade. Services add some 20 MiB where they are on,
// and some 28 MiB more where they answer from outside.
func DefaultSizes() Sizes {
	return Sizes{
		CT: 1 << 17, CTNew: 1 << 14, NAT: 1 << 16, NATNew: 1 << 14, NATClient: 1 << 14, Fragments: 1 << 12, IPCache: 1 << 17, Networks: 1 << 14, Events: 1 << 19,
		Services: 1 << 16, Backends: 1 << 17, Affinity: 1 << 16, Sockets: 1 << 16, LBConns: 1 << 16, LBConnNew: 1 << 14,
		Maglev: 1 << 16,
	}
}

func (s Sizes) withDefaults() Sizes {
	d := DefaultSizes()
	for _, p := range []struct{ v, d *int }{
		{&s.CT, &d.CT},
		{&s.CTNew, &d.CTNew},
		{&s.NAT, &d.NAT},
		{&s.NATNew, &d.NATNew},
		{&s.NATClient, &d.NATClient},
		{&s.Fragments, &d.Fragments},
		{&s.IPCache, &d.IPCache},
		{&s.Networks, &d.Networks},
		{&s.Events, &d.Events},
		{&s.Services, &d.Services},
		{&s.Backends, &d.Backends},
		{&s.Affinity, &d.Affinity},
		{&s.Sockets, &d.Sockets},
		{&s.LBConns, &d.LBConns},
		{&s.LBConnNew, &d.LBConnNew},
		{&s.Maglev, &d.Maglev},
	} {
		if *p.v == 0 {
			*p.v = *p.d
		}
	}
	return s
}

// Entries returns the capacity of each map that has one to choose, by map name.
func (s Sizes) Entries() map[string]int {
	s = s.withDefaults()
	return map[string]int{
		object.DatapathMapWeftCt4: s.CT, object.DatapathMapWeftCt6: s.CT,
		object.DatapathMapWeftCtn4: s.CTNew, object.DatapathMapWeftCtn6: s.CTNew,
		object.DatapathMapWeftNat4: s.NAT, object.DatapathMapWeftNat6: s.NAT,
		object.DatapathMapWeftNatn4: s.NATNew, object.DatapathMapWeftNatn6: s.NATNew,
		object.DatapathMapWeftNatc4: s.NATClient, object.DatapathMapWeftNatc6: s.NATClient,
		object.DatapathMapWeftFrag4: s.Fragments, object.DatapathMapWeftFrag6: s.Fragments,
		object.DatapathMapWeftIpc4: s.IPCache, object.DatapathMapWeftIpc6: s.IPCache,
		object.DatapathMapWeftNet4: s.Networks, object.DatapathMapWeftNet6: s.Networks,
		object.DatapathMapWeftEvents: s.Events,
		object.DatapathMapWeftSvc4:   s.Services, object.DatapathMapWeftSvc6: s.Services, object.DatapathMapWeftSvcset: s.Services,
		object.DatapathMapWeftSrc4: s.Services, object.DatapathMapWeftSrc6: s.Services,
		object.DatapathMapWeftBe: s.Backends, object.DatapathMapWeftAffinity: s.Affinity, object.DatapathMapWeftSk: s.Sockets,
		object.DatapathMapWeftLbct4: s.LBConns, object.DatapathMapWeftLbct6: s.LBConns,
		object.DatapathMapWeftLbctn4: s.LBConnNew, object.DatapathMapWeftLbctn6: s.LBConnNew,
		object.DatapathMapWeftLbctp4: s.LBConnNew, object.DatapathMapWeftLbctp6: s.LBConnNew,
		object.DatapathMapWeftMaglev: s.Maglev,
	}
}
