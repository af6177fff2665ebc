// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
	"unique"

	"github.com/cilium/statedb"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/weft-net/weft/internal/arrival"
	"github.com/weft-net/weft/internal/table"
)

// Names of the reflectors of services, as the status shows them.
const (
	servicesResource       = "services"
	endpointSlicesResource = "endpointslices"
)

// Labels and annotations of Services.
const (
	proxyNameLabel         = "service.kubernetes.io/service-proxy-name"
	sourceRangesAnnotation = "service.beta.kubernetes.io/load-balancer-source-ranges"
	algorithmAnnotation    = "service.cilium.io/lb-algorithm"
)

// forNodesProxy selects what the proxy of the nodes is to look at, as kube-proxy
// does: neither what is left to another proxy, nor slices of headless Services.
const forNodesProxy = "!" + proxyNameLabel + ",!" + corev1.IsHeadlessService

// defaultAffinity is sessionAffinityConfig.clientIP.timeoutSeconds where it is
// not given, as the API says.
const defaultAffinity = time.Duration(corev1.DefaultClientIPServiceAffinitySeconds) * time.Second

// ServiceTables are what the reflectors of Services and EndpointSlices write.
type ServiceTables struct {
	Services  statedb.RWTable[*table.Service]
	Slices    statedb.RWTable[*table.EndpointSlice]
	HostPorts statedb.RWTable[*table.PodHostPorts] // of this node; nil: nobody asks
	// When the events behind the rows arrived; nil: nobody asks.
	ServicesArrived, SlicesArrived, HostPortsArrived *arrival.Log
}

// serviceRow makes the row of a Service.
func serviceRow(s *corev1.Service) *table.Service {
	row := &table.Service{
		Namespace: intern(s.Namespace), Name: s.Name, UID: string(s.UID), Created: s.CreationTimestamp.Time, Type: intern(string(s.Spec.Type)),
		ExternalLocal: s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal,
		InternalLocal: s.Spec.InternalTrafficPolicy != nil && *s.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal,
	}
	if p := s.Spec.HealthCheckNodePort; p > 0 && p <= 65535 && row.ExternalLocal && s.Spec.Type == corev1.ServiceTypeLoadBalancer {
		row.HealthPort = uint16(p)
	}
	for _, label := range []string{proxyNameLabel, corev1.IsHeadlessService} {
		if _, has := s.Labels[label]; has {
			row.Elsewhere = true
		}
	}
	for _, p := range s.Spec.Ports {
		row.Ports = append(row.Ports, table.ServicePortSpec{Name: intern(p.Name), Proto: protocol(p.Protocol), Port: p.Port, NodePort: p.NodePort})
	}
	if s.Spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		row.Affinity = defaultAffinity
		if c := s.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
			row.Affinity = time.Duration(*c.ClientIP.TimeoutSeconds) * time.Second
		}
	}
	serviceAddresses(row, s)
	sourceRanges(row, s)
	algorithm(row, s)
	return row
}

// algorithm reads the annotation that chooses one. With any other value it is as if
// there were none.
func algorithm(row *table.Service, s *corev1.Service) {
	text, has := s.Annotations[algorithmAnnotation]
	switch {
	case !has:
	case text == table.AlgorithmRandom || text == table.AlgorithmMaglev:
		row.Algorithm = text
	default:
		row.Garbage = append(row.Garbage, fmt.Sprintf("annotation %s %q (%s and %s are known)", algorithmAnnotation, text, table.AlgorithmRandom, table.AlgorithmMaglev))
	}
}

// serviceAddresses fills in the addresses; what is none is named in the row.
func serviceAddresses(row *table.Service, s *corev1.Service) {
	parse := func(what, text string) (ip netip.Addr, ok bool) {
		ip, err := netip.ParseAddr(text)
		if err != nil {
			row.Garbage = append(row.Garbage, fmt.Sprintf("%s %q", what, text))
		}
		return ip, err == nil
	}
	clusterIPs := s.Spec.ClusterIPs
	if len(clusterIPs) == 0 {
		clusterIPs = []string{s.Spec.ClusterIP}
	}
	for _, text := range clusterIPs {
		if text == corev1.ClusterIPNone {
			row.Headless = true
		} else if text != "" { // empty: not given yet
			if ip, ok := parse("clusterIP", text); ok {
				row.ClusterIPs = append(row.ClusterIPs, ip)
			}
		}
	}
	for _, text := range s.Spec.ExternalIPs {
		if ip, ok := parse("externalIP", text); ok {
			row.ExternalIPs = append(row.ExternalIPs, ip)
		}
	}
	for _, in := range s.Status.LoadBalancer.Ingress {
		if in.IP == "" {
			continue // a name, which is for DNS
		}
		if ip, ok := parse("load balancer address", in.IP); ok {
			proxy := in.IPMode != nil && *in.IPMode == corev1.LoadBalancerIPModeProxy
			row.Ingress = append(row.Ingress, table.ServiceIngress{Addr: ip, Proxy: proxy})
		}
	}
}

// sourceRanges reads the field, or the annotation that is older than it. Where
// something is there that is no range, the Service stays closed to it.
func sourceRanges(row *table.Service, s *corev1.Service) {
	ranges := s.Spec.LoadBalancerSourceRanges
	if text := s.Annotations[sourceRangesAnnotation]; len(ranges) == 0 && strings.TrimSpace(text) != "" {
		ranges = strings.Split(text, ",")
	}
	for _, text := range ranges {
		row.Restricted = true
		p, err := netip.ParsePrefix(strings.TrimSpace(text))
		if err != nil {
			row.Garbage = append(row.Garbage, fmt.Sprintf("loadBalancerSourceRange %q", text))
			continue
		}
		row.SourceRanges = append(row.SourceRanges, p.Masked())
	}
}

// sliceRow makes the row of an EndpointSlice; it has no Service where it is of
// none, or of a family that means nothing to a proxy.
func sliceRow(s *discoveryv1.EndpointSlice) *table.EndpointSlice {
	row := &table.EndpointSlice{Namespace: intern(s.Namespace), Name: s.Name, V6: s.AddressType == discoveryv1.AddressTypeIPv6}
	if s.AddressType != discoveryv1.AddressTypeIPv4 && !row.V6 {
		return row
	}
	row.Service = intern(s.Labels[discoveryv1.LabelServiceName])
	for _, p := range s.Ports {
		row.Ports = append(row.Ports, table.SlicePort{
			Name: intern(value(p.Name, "")), Proto: protocol(value(p.Protocol, corev1.ProtocolTCP)), Port: value(p.Port, 0),
		})
	}
	row.Endpoints = make([]table.SliceEndpoint, 0, len(s.Endpoints))
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		if len(e.Addresses) == 0 {
			continue
		}
		// Those after the first mean nothing, says the API.
		ip, err := netip.ParseAddr(e.Addresses[0])
		if err != nil {
			row.Garbage = append(row.Garbage, fmt.Sprintf("address %q", e.Addresses[0]))
			continue
		}
		out := table.SliceEndpoint{
			Addr: ip, Ready: value(e.Conditions.Ready, true), Serving: value(e.Conditions.Serving, true), Terminating: value(e.Conditions.Terminating, false),
			Node: intern(value(e.NodeName, "")), Zone: intern(value(e.Zone, "")),
		}
		if h := e.Hints; h != nil && len(h.ForZones)+len(h.ForNodes) > 0 {
			out.Hints = &table.Hints{}
			for _, z := range h.ForZones {
				out.Hints.Zones = append(out.Hints.Zones, intern(z.Name))
			}
			for _, n := range h.ForNodes {
				out.Hints.Nodes = append(out.Hints.Nodes, intern(n.Name))
			}
		}
		row.Endpoints = append(row.Endpoints, out)
	}
	return row
}

// intern makes equal strings one: names of nodes, zones and ports stand in each
// of a hundred thousand endpoints.
func intern(s string) string { return unique.Make(s).Value() }

func value[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}

func protocol(p corev1.Protocol) uint8 {
	switch p {
	case corev1.ProtocolTCP, "":
		return table.ProtoTCP
	case corev1.ProtocolUDP:
		return table.ProtoUDP
	case corev1.ProtocolSCTP:
		return table.ProtoSCTP
	}
	return 0
}

// stripService keeps what serviceRow reads; much of what annotations and managed
// fields hold is copies of the object.
func stripService(s *corev1.Service) *corev1.Service {
	out := &corev1.Service{ObjectMeta: stripMeta(s.ObjectMeta), Spec: s.Spec}
	out.Labels = only(s.Labels, proxyNameLabel, corev1.IsHeadlessService)
	out.Annotations = only(s.Annotations, sourceRangesAnnotation, algorithmAnnotation)
	out.Spec.Selector = nil
	out.Status.LoadBalancer = s.Status.LoadBalancer
	return out
}

// stripSlice keeps what sliceRow reads.
func stripSlice(s *discoveryv1.EndpointSlice) *discoveryv1.EndpointSlice {
	out := &discoveryv1.EndpointSlice{ObjectMeta: stripMeta(s.ObjectMeta), AddressType: s.AddressType, Ports: s.Ports, Endpoints: s.Endpoints}
	out.Labels = only(s.Labels, discoveryv1.LabelServiceName)
	for i := range out.Endpoints {
		e := &out.Endpoints[i]
		e.Hostname, e.TargetRef, e.DeprecatedTopology = nil, nil, nil
	}
	return out
}

// only returns the entries with these keys, nil if there is none.
func only(m map[string]string, keys ...string) map[string]string {
	var out map[string]string
	for _, k := range keys {
		if v, has := m[k]; has {
			if out == nil {
				out = map[string]string{}
			}
			out[k] = v
		}
	}
	return out
}

// objectRow is a row that is made from one object and nothing else.
type objectRow[R any] interface {
	FullName() string
	Equal(R) bool
}

// objectStore turns objects of one kind into rows of one table.
type objectStore[O any, R objectRow[R]] struct {
	resource string
	db       *statedb.DB
	rows     statedb.RWTable[R]
	byName   statedb.Index[R, string]
	arrived  *arrival.Log
	strip    func(O) O
	row      func(O) R
	keep     func(R) bool
	done     func(statedb.WriteTxn)
}

// Transformer has objects of a first list trimmed as they come.
func (s *objectStore[O, R]) Transformer() cache.TransformFunc {
	return func(o any) (any, error) {
		if obj, ok := o.(O); ok {
			return s.strip(obj), nil
		}
		return o, nil
	}
}

func (s *objectStore[O, R]) Add(o any) error { return s.Update(o) }

func (s *objectStore[O, R]) Update(o any) error {
	return s.one(o, func(txn statedb.WriteTxn, row R) error {
		if !s.keep(row) {
			return s.remove(txn, row)
		}
		return s.insert(txn, row)
	})
}

func (s *objectStore[O, R]) Delete(o any) error { return s.one(o, s.remove) }

// one does the work of one event.
func (s *objectStore[O, R]) one(o any, change func(statedb.WriteTxn, R) error) error {
	arrived := time.Now()
	obj, ok := o.(O)
	if !ok {
		return fmt.Errorf("%s: unexpected %T", s.resource, o)
	}
	row := s.row(obj)
	txn := s.db.WriteTxn(s.rows)
	defer txn.Abort()
	if err := change(txn, row); err != nil {
		return err
	}
	s.arrived.Note(s.rows.Revision(txn), arrived)
	txn.Commit()
	return nil
}

func (s *objectStore[O, R]) insert(txn statedb.WriteTxn, row R) error {
	old, _, found := s.rows.Get(txn, s.byName.Query(row.FullName()))
	if found && old.Equal(row) {
		return nil
	}
	if _, _, err := s.rows.Insert(txn, row); err != nil {
		return fmt.Errorf("%s %s: %w", s.resource, row.FullName(), err)
	}
	return nil
}

func (s *objectStore[O, R]) remove(txn statedb.WriteTxn, row R) error {
	if _, _, err := s.rows.Delete(txn, row); err != nil {
		return fmt.Errorf("%s %s: %w", s.resource, row.FullName(), err)
	}
	return nil
}

func (s *objectStore[O, R]) Replace(list []any, _ string) error {
	arrived := time.Now()
	txn := s.db.WriteTxn(s.rows)
	defer txn.Abort()
	names := make(map[string]bool, len(list))
	for _, o := range list {
		obj, ok := o.(O)
		if !ok {
			continue
		}
		row := s.row(obj)
		if !s.keep(row) {
			continue
		}
		names[row.FullName()] = true
		if err := s.insert(txn, row); err != nil {
			return err
		}
	}
	for row := range s.rows.All(txn) {
		if !names[row.FullName()] {
			if err := s.remove(txn, row); err != nil {
				return err
			}
		}
	}
	s.done(txn)
	s.arrived.Note(s.rows.Revision(txn), arrived)
	txn.Commit()
	return nil
}

func (s *objectStore[O, R]) Resync() error { return nil }

// serviceStores are the stores of Services and their slices.
type serviceStores struct {
	services *objectStore[*corev1.Service, *table.Service]
	slices   *objectStore[*discoveryv1.EndpointSlice, *table.EndpointSlice]
	pods     *objectStore[*corev1.Pod, *table.PodHostPorts] // nil: nobody asks
}

// newServiceStores registers the tables' initializers.
func newServiceStores(db *statedb.DB, t ServiceTables, once func(string, func(statedb.WriteTxn)) func(statedb.WriteTxn)) *serviceStores {
	txn := db.WriteTxn(t.Services, t.Slices)
	defer txn.Commit()
	return &serviceStores{
		services: &objectStore[*corev1.Service, *table.Service]{
			resource: servicesResource, db: db, rows: t.Services, byName: table.ServiceByName, arrived: t.ServicesArrived,
			strip: stripService, row: serviceRow, keep: func(*table.Service) bool { return true },
			done: once(servicesResource, t.Services.RegisterInitializer(txn, servicesResource)),
		},
		slices: &objectStore[*discoveryv1.EndpointSlice, *table.EndpointSlice]{
			resource: endpointSlicesResource, db: db, rows: t.Slices, byName: table.EndpointSliceByName, arrived: t.SlicesArrived,
			strip: stripSlice, row: sliceRow, keep: func(s *table.EndpointSlice) bool { return s.Service != "" },
			done: once(endpointSlicesResource, t.Slices.RegisterInitializer(txn, endpointSlicesResource)),
		},
	}
}
