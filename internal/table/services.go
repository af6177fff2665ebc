// SPDX-License-Identifier: Apache-2.0

package table

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/statedb"
	"github.com/cilium/statedb/index"
)

// Names of the tables of services.
const (
	ServicesName       = "services"
	EndpointSlicesName = "endpointslices"
	FrontendsName      = "frontends"
)

// Transport protocols of services, as the IP header numbers them.
const (
	ProtoTCP  uint8 = 6
	ProtoUDP  uint8 = 17
	ProtoSCTP uint8 = 132
)

// Scopes of a frontend: whose traffic its row answers.
const (
	ScopeExternal uint8 = 0 // from outside the cluster; with FrontendBoth from everywhere
	ScopeInternal uint8 = 1 // from pods and nodes
)

// Flags of a frontend; the numbers are shared with bpf/lib.
const (
	// FrontendBoth marks the one row of a frontend that answers both scopes alike.
	FrontendBoth uint32 = 1 << 0
	// FrontendLocal marks a row that a traffic policy keeps to backends of this node.
	// Without one of these nothing answers, though the service may have others.
	FrontendLocal uint32 = 1 << 1
	// FrontendSources marks a row that only SourceRanges may use from outside.
	FrontendSources uint32 = 1 << 2
	// FrontendMaglev marks a row whose connections from outside are spread by a Maglev
	// table, where it has more than one backend; else at random.
	FrontendMaglev uint32 = 1 << 3
)

// FrontendType says which part of a Service a frontend comes from.
type FrontendType string

// Types of frontends, as users of Cilium know them.
const (
	FrontendClusterIP    FrontendType = "ClusterIP"
	FrontendNodePort     FrontendType = "NodePort"
	FrontendLoadBalancer FrontendType = "LoadBalancer"
	FrontendExternalIPs  FrontendType = "ExternalIPs"
	FrontendHostPort     FrontendType = "HostPort"
)

// FrontendKey is what clients connect to. A NodePort has the unspecified address
// of its family: any address of the node.
type FrontendKey struct {
	Addr  netip.AddrPort `json:"addr"`
	Proto uint8          `json:"proto"`
	Scope uint8          `json:"scope"`
}

// String returns the key as Cilium's users read it: "10.96.0.1:443/TCP", and
// "/i" after it where it is for traffic from inside only.
func (k FrontendKey) String() string {
	s := k.Addr.String() + "/" + ProtoName(k.Proto)
	if k.Scope == ScopeInternal {
		s += "/i"
	}
	return s
}

// ProtoName returns the name of a transport protocol as Kubernetes writes it.
func ProtoName(proto uint8) string {
	switch proto {
	case ProtoTCP:
		return "TCP"
	case ProtoUDP:
		return "UDP"
	case ProtoSCTP:
		return "SCTP"
	}
	return strconv.Itoa(int(proto))
}

// BackendRef is one backend of a frontend. The id belongs to address, port and
// protocol together and is the same in every frontend that names them; 0 is none.
type BackendRef struct {
	ID    uint32         `json:"id"`
	Addr  netip.AddrPort `json:"addr"`
	Proto uint8          `json:"proto"`
	// Terminating: the pod is shutting down and still serves; it is asked only
	// because no backend is ready.
	Terminating bool   `json:"terminating,omitempty"`
	Local       bool   `json:"local,omitempty"` // on this node
	Node        string `json:"node,omitempty"`
	Zone        string `json:"zone,omitempty"`
}

// String returns the backend as Cilium's users read it.
func (b BackendRef) String() string {
	state := "active"
	if b.Terminating {
		state = "terminating"
	}
	return fmt.Sprintf("%d => %s/%s (%s)", b.ID, b.Addr, ProtoName(b.Proto), state)
}

// Frontend is one row of the kernel's service map: what clients connect to, and
// all backends that may answer, which change together with it. One without
// backends refuses connections. Written by the derivation in internal/agent only.
type Frontend struct {
	Key       FrontendKey  `json:"key"`
	Namespace string       `json:"namespace"`
	Service   string       `json:"service"`
	PortName  string       `json:"portName,omitempty"`
	Type      FrontendType `json:"type"`
	// ServiceID belongs to one port of one Service in one family: what session
	// affinity remembers holds for all frontends with the same one.
	ServiceID uint32        `json:"serviceID"`
	Affinity  time.Duration `json:"affinity,omitempty"` // ClientIP session affinity; 0: none
	Flags     uint32        `json:"flags,omitempty"`
	Backends  []BackendRef  `json:"backends"` // by id
	// SourceRanges are spec.loadBalancerSourceRanges of the frontend's family. With
	// FrontendSources and none here, nobody outside may use it.
	SourceRanges []netip.Prefix `json:"sourceRanges,omitempty"`
}

// Name returns namespace/service.
func (f *Frontend) Name() string { return f.Namespace + "/" + f.Service }

// Equal says whether two rows would be written alike.
func (f *Frontend) Equal(o *Frontend) bool {
	return f.Key == o.Key && f.Namespace == o.Namespace && f.Service == o.Service && f.PortName == o.PortName &&
		f.Type == o.Type && f.ServiceID == o.ServiceID && f.Affinity == o.Affinity && f.Flags == o.Flags &&
		slices.Equal(f.Backends, o.Backends) && slices.Equal(f.SourceRanges, o.SourceRanges)
}

// TableHeader names the columns of TableRow.
func (*Frontend) TableHeader() []string {
	return []string{"ID", "FRONTEND", "SERVICE TYPE", "SERVICE", "BACKEND"}
}

// TableRow renders the frontend under TableHeader.
func (f *Frontend) TableRow() []string {
	backends := make([]string, len(f.Backends))
	for i, b := range f.Backends {
		backends[i] = b.String()
	}
	name := f.Name()
	if f.PortName != "" {
		name += ":" + f.PortName
	}
	return []string{strconv.FormatUint(uint64(f.ServiceID), 10), f.Key.String(), string(f.Type), name, strings.Join(backends, ",")}
}

// TableLines is TableRow with a line for each backend, as Cilium's users read it.
func (f *Frontend) TableLines() [][]string {
	first := f.TableRow()
	last := len(first) - 1
	out := [][]string{first}
	for i, b := range f.Backends {
		if i > 0 {
			out = append(out, slices.Repeat([]string{" "}, len(first)))
		}
		out[i][last] = b.String()
	}
	return out
}

// FrontendByKey is the primary index of frontends.
var FrontendByKey = statedb.Index[*Frontend, FrontendKey]{
	Name:       "key",
	FromObject: func(f *Frontend) index.KeySet { return index.NewKeySet(frontendKey(f.Key)) },
	FromKey:    frontendKey,
	Unique:     true,
}

// FrontendByService finds the frontends of "namespace/service".
var FrontendByService = byText("service", false, (*Frontend).Name)

// NewFrontends makes the table of the services' frontends. Writer: the
// derivation in internal/agent.
func NewFrontends(db *statedb.DB) (statedb.RWTable[*Frontend], error) {
	return made(statedb.NewTable(db, FrontendsName, FrontendByKey, FrontendByService))
}

// frontendKey keeps the families apart as prefixKey does: 0.0.0.0 and ::ffff:0.0.0.0
// have the same 16 bytes.
func frontendKey(k FrontendKey) index.Key {
	family := byte(6)
	if k.Addr.Addr().Is4() {
		family = 4
	}
	a := k.Addr.Addr().As16()
	key := append(make(index.Key, 0, 21), family)
	key = append(key, a[:]...)
	key = binary.BigEndian.AppendUint16(key, k.Addr.Port())
	return append(key, k.Proto, k.Scope)
}
