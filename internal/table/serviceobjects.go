// SPDX-License-Identifier: Apache-2.0

package table

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/statedb"
)

// Types of Services, as Kubernetes writes them.
const (
	ServiceClusterIP    = "ClusterIP"
	ServiceNodePort     = "NodePort"
	ServiceLoadBalancer = "LoadBalancer"
	ServiceExternalName = "ExternalName"
)

// Algorithms by which connections from outside are spread over backends, as Cilium
// writes them.
const (
	AlgorithmRandom = "random"
	AlgorithmMaglev = "maglev"
)

// Service is what Weft reads of a Kubernetes Service. It is written by
// internal/k8s only; internal/service says what follows from it.
type Service struct {
	Namespace string    `json:"namespace"`
	Name      string    `json:"name"`
	UID       string    `json:"uid,omitempty"`
	Created   time.Time `json:"created"` // decides between two that claim one frontend
	Type      string    `json:"type"`
	Headless  bool      `json:"headless,omitempty"` // clusterIP None
	// Elsewhere: a label leaves it to another proxy than the node's
	// (service.kubernetes.io/service-proxy-name, service.kubernetes.io/headless).
	Elsewhere bool `json:"elsewhere,omitempty"`

	ClusterIPs  []netip.Addr      `json:"clusterIPs,omitempty"`
	ExternalIPs []netip.Addr      `json:"externalIPs,omitempty"`
	Ingress     []ServiceIngress  `json:"ingress,omitempty"` // status.loadBalancer.ingress that are addresses
	Ports       []ServicePortSpec `json:"ports"`

	InternalLocal bool          `json:"internalLocal,omitempty"` // internalTrafficPolicy Local
	ExternalLocal bool          `json:"externalLocal,omitempty"` // externalTrafficPolicy Local
	HealthPort    uint16        `json:"healthPort,omitempty"`    // healthCheckNodePort; 0: none
	Affinity      time.Duration `json:"affinity,omitempty"`      // of sessionAffinity ClientIP; 0: none
	// Restricted: loadBalancerSourceRanges are given, be they readable or not.
	Restricted   bool           `json:"restricted,omitempty"`
	SourceRanges []netip.Prefix `json:"sourceRanges,omitempty"`
	Algorithm    string         `json:"algorithm,omitempty"` // Algorithm* of its annotation; empty: none that is known
	// Garbage names what could not be read: `externalIP "10.0.0.300"`.
	Garbage []string `json:"garbage,omitempty"`
}

// ServiceIngress is an address of a load balancer. Behind one that is a Proxy
// (ipMode, KEP-1860) traffic of the cluster itself has to pass through it, too.
type ServiceIngress struct {
	Addr  netip.Addr `json:"addr"`
	Proxy bool       `json:"proxy,omitempty"`
}

// ServicePortSpec is one port of a Service. Numbers are as the object has them.
type ServicePortSpec struct {
	Name     string `json:"name,omitempty"`
	Proto    uint8  `json:"proto"` // 0: one that is not known
	Port     int32  `json:"port"`
	NodePort int32  `json:"nodePort,omitempty"`
}

// FullName returns namespace/name.
func (s *Service) FullName() string { return s.Namespace + "/" + s.Name }

// Equal says whether the rows say the same.
func (s *Service) Equal(o *Service) bool {
	return s.Namespace == o.Namespace && s.Name == o.Name && s.UID == o.UID && s.Created.Equal(o.Created) && s.Type == o.Type &&
		s.Headless == o.Headless && s.Elsewhere == o.Elsewhere && s.InternalLocal == o.InternalLocal && s.ExternalLocal == o.ExternalLocal && s.HealthPort == o.HealthPort &&
		s.Affinity == o.Affinity && s.Restricted == o.Restricted && s.Algorithm == o.Algorithm &&
		slices.Equal(s.ClusterIPs, o.ClusterIPs) && slices.Equal(s.ExternalIPs, o.ExternalIPs) && slices.Equal(s.Ingress, o.Ingress) &&
		slices.Equal(s.Ports, o.Ports) && slices.Equal(s.SourceRanges, o.SourceRanges) && slices.Equal(s.Garbage, o.Garbage)
}

// TableHeader names the columns of TableRow.
func (*Service) TableHeader() []string {
	return []string{"NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORTS"}
}

// TableRow renders the service under TableHeader.
func (s *Service) TableRow() []string {
	external := slices.Clone(s.ExternalIPs)
	for _, i := range s.Ingress {
		external = append(external, i.Addr)
	}
	ports := make([]string, len(s.Ports))
	for i, p := range s.Ports {
		ports[i] = fmt.Sprintf("%d/%s", p.Port, ProtoName(p.Proto))
		if p.NodePort != 0 {
			ports[i] = fmt.Sprintf("%d:%d/%s", p.Port, p.NodePort, ProtoName(p.Proto))
		}
	}
	return []string{s.FullName(), s.Type, join(s.ClusterIPs), join(external), strings.Join(ports, ",")}
}

// EndpointSlice is what Weft reads of an EndpointSlice of a Service. It is
// written by internal/k8s only.
type EndpointSlice struct {
	Namespace string          `json:"namespace"`
	Name      string          `json:"name"`
	Service   string          `json:"service"` // label kubernetes.io/service-name
	V6        bool            `json:"v6,omitempty"`
	Ports     []SlicePort     `json:"ports"`
	Endpoints []SliceEndpoint `json:"endpoints"`
	Garbage   []string        `json:"garbage,omitempty"` // addresses that could not be read
}

// SlicePort is one port that all endpoints of a slice have. Name is that of the
// Service's port, whose targetPort the number already stands for.
type SlicePort struct {
	Name  string `json:"name,omitempty"`
	Proto uint8  `json:"proto"`
	Port  int32  `json:"port"` // 0: none given
}

// SliceEndpoint is one endpoint of a slice, conditions as they count: those that
// are not given stand for what the API says they do.
type SliceEndpoint struct {
	Addr        netip.Addr `json:"addr"`
	Ready       bool       `json:"ready"`
	Serving     bool       `json:"serving"`
	Terminating bool       `json:"terminating,omitempty"`
	Node        string     `json:"node,omitempty"`
	Zone        string     `json:"zone,omitempty"`
	Hints       *Hints     `json:"hints,omitempty"` // nil: none, as most have
}

// Hints say who should prefer an endpoint.
type Hints struct {
	Zones []string `json:"zones,omitempty"`
	Nodes []string `json:"nodes,omitempty"`
}

// Equal says whether both hint at the same.
func (h *Hints) Equal(o *Hints) bool {
	if h == nil || o == nil {
		return h == o
	}
	return slices.Equal(h.Zones, o.Zones) && slices.Equal(h.Nodes, o.Nodes)
}

// FullName returns namespace/name.
func (s *EndpointSlice) FullName() string { return s.Namespace + "/" + s.Name }

// Equal says whether the rows say the same.
func (s *EndpointSlice) Equal(o *EndpointSlice) bool {
	return s.Namespace == o.Namespace && s.Name == o.Name && s.Service == o.Service && s.V6 == o.V6 &&
		slices.Equal(s.Ports, o.Ports) && slices.Equal(s.Garbage, o.Garbage) &&
		slices.EqualFunc(s.Endpoints, o.Endpoints, func(a, b SliceEndpoint) bool {
			return a.Hints.Equal(b.Hints) && a.Addr == b.Addr && a.Ready == b.Ready && a.Serving == b.Serving &&
				a.Terminating == b.Terminating && a.Node == b.Node && a.Zone == b.Zone
		})
}

// TableHeader names the columns of TableRow.
func (*EndpointSlice) TableHeader() []string {
	return []string{"NAME", "SERVICE", "PORTS", "ENDPOINTS"}
}

// TableRow renders the slice under TableHeader.
func (s *EndpointSlice) TableRow() []string {
	ports := make([]string, len(s.Ports))
	for i, p := range s.Ports {
		ports[i] = strconv.Itoa(int(p.Port)) + "/" + ProtoName(p.Proto)
	}
	addrs := make([]netip.Addr, len(s.Endpoints))
	for i, e := range s.Endpoints {
		addrs[i] = e.Addr
	}
	return []string{s.FullName(), s.Service, strings.Join(ports, ","), join(addrs)}
}

// ServiceByName is the primary index of services: "namespace/name".
var ServiceByName = byText("name", true, (*Service).FullName)

// NewServices makes the table of the cluster's Services. Writer: internal/k8s.
func NewServices(db *statedb.DB) (statedb.RWTable[*Service], error) {
	return made(statedb.NewTable(db, ServicesName, ServiceByName))
}

// EndpointSliceByName is the primary index of slices: "namespace/name".
var EndpointSliceByName = byText("name", true, (*EndpointSlice).FullName)

// NewEndpointSlices makes the table of the Services' slices. Writer: internal/k8s.
func NewEndpointSlices(db *statedb.DB) (statedb.RWTable[*EndpointSlice], error) {
	return made(statedb.NewTable(db, EndpointSlicesName, EndpointSliceByName))
}
