// SPDX-License-Identifier: Apache-2.0

package table

import (
	"fmt"
	"net/netip"

	"github.com/cilium/statedb"
	"github.com/cilium/statedb/index"
)

// Names of the tables.
const (
	EndpointsName  = "endpoints"
	NodesName      = "nodes"
	RemotePodsName = "remote-pods"
	IPCacheName    = "ipcache"
	DevicesName    = "devices"
	RoutesName     = "routes"
)

// EndpointByID is the primary index of endpoints.
var EndpointByID = statedb.Index[*Endpoint, uint16]{
	Name:       "id",
	FromObject: func(e *Endpoint) index.KeySet { return index.NewKeySet(index.Uint16(e.ID)) },
	FromKey:    index.Uint16,
	FromString: index.Uint16String,
	Unique:     true,
}

// EndpointByAttachment finds an endpoint by "containerID/ifName".
var EndpointByAttachment = byText("attachment", false, func(e *Endpoint) string { return e.ContainerID + "/" + e.IfName })

// EndpointByName finds the endpoints of "namespace/pod". While a pod is
// replaced by one of the same name there may be two.
var EndpointByName = byText("name", false, (*Endpoint).Name)

// NewEndpoints makes the table of this node's endpoints. Writer: internal/endpoint.
func NewEndpoints(db *statedb.DB) (statedb.RWTable[*Endpoint], error) {
	return made(statedb.NewTable(db, EndpointsName, EndpointByID, EndpointByAttachment, EndpointByName))
}

// NodeByName is the primary index of nodes.
var NodeByName = byText("name", true, func(n *Node) string { return n.Name })

// NewNodes makes the table of the cluster's nodes. Writer: internal/k8s.
func NewNodes(db *statedb.DB) (statedb.RWTable[*Node], error) {
	return made(statedb.NewTable(db, NodesName, NodeByName))
}

// RemotePodByName is the primary index of remote pods: "namespace/name".
var RemotePodByName = byText("name", true, (*RemotePod).Name)

// RemotePodByAddr finds the pods that claim an address.
var RemotePodByAddr = statedb.Index[*RemotePod, netip.Addr]{
	Name:       "addr",
	FromObject: func(p *RemotePod) index.KeySet { return index.NewKeySet(addrKeys(p.Addrs)...) },
	FromKey:    index.NetIPAddr,
	FromString: index.NetIPAddrString,
}

// byText is an index by something that each row says in words; primary: only one row says it.
func byText[R any](name string, primary bool, words func(R) string) statedb.Index[R, string] {
	return statedb.Index[R, string]{
		Name:       name,
		FromObject: func(r R) index.KeySet { return index.NewKeySet(index.String(words(r))) },
		FromKey:    index.String,
		FromString: index.FromString,
		Unique:     primary,
	}
}

func addrKeys(addrs []netip.Addr) []index.Key {
	keys := make([]index.Key, len(addrs))
	for i, a := range addrs {
		keys[i] = index.NetIPAddr(a)
	}
	return keys
}

// NewRemotePods makes the table of CiliumEndpoints, those of this node
// included. Writer: internal/k8s.
func NewRemotePods(db *statedb.DB) (statedb.RWTable[*RemotePod], error) {
	return made(statedb.NewTable(db, RemotePodsName, RemotePodByName, RemotePodByAddr))
}

// IPCacheByPrefix is the primary index of the ipcache.
var IPCacheByPrefix = statedb.Index[*IPCache, netip.Prefix]{
	Name:       "prefix",
	FromObject: func(c *IPCache) index.KeySet { return index.NewKeySet(prefixKey(c.Prefix)) },
	FromKey:    prefixKey,
	FromString: prefixKeyOf,
	Unique:     true,
}

// NewIPCache makes the table of desired ipcache entries, one a prefix. Writer:
// the derivation in internal/agent.
func NewIPCache(db *statedb.DB) (statedb.RWTable[*IPCache], error) {
	return made(statedb.NewTable(db, IPCacheName, IPCacheByPrefix))
}

// DeviceByName is the primary index of devices.
var DeviceByName = byText("name", true, func(d *Device) string { return d.Name })

// NewDevices makes the table of the node's network devices. Writer: the device
// watcher in internal/agent.
func NewDevices(db *statedb.DB) (statedb.RWTable[*Device], error) {
	return made(statedb.NewTable(db, DevicesName, DeviceByName))
}

// RouteByPrefix is the primary index of routes.
var RouteByPrefix = statedb.Index[*Route, netip.Prefix]{
	Name:       "prefix",
	FromObject: func(r *Route) index.KeySet { return index.NewKeySet(prefixKey(r.Prefix)) },
	FromKey:    prefixKey,
	FromString: prefixKeyOf,
	Unique:     true,
}

// NewRoutes makes the table of desired routes to other nodes. Writer: the
// derivation in internal/agent.
func NewRoutes(db *statedb.DB) (statedb.RWTable[*Route], error) {
	return made(statedb.NewTable(db, RoutesName, RouteByPrefix))
}

// prefixKey keeps ::/96 and 0.0.0.0/0 apart, which statedb's own key, made of
// the 16-byte form and the length, does not for mapped addresses.
func prefixKey(p netip.Prefix) index.Key {
	k := index.NetIPPrefix(p)
	if p.Addr().Is4() {
		return append(k, 4)
	}
	return append(k, 6)
}

func prefixKeyOf(s string) (index.Key, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return nil, fmt.Errorf("prefix %q: %w", s, err)
	}
	return prefixKey(p), nil
}

func made[T any](t statedb.RWTable[T], err error) (statedb.RWTable[T], error) {
	if err != nil {
		return nil, fmt.Errorf("state tables: %w", err)
	}
	return t, nil
}
