// SPDX-License-Identifier: Apache-2.0

package table

import (
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/statedb"
)

// HostPortsName is the name of the table of pods with hostPorts.
const HostPortsName = "hostports"

// PodHostPorts are the hostPorts of a pod of this node that has not ended. It is
// written by internal/k8s only.
type PodHostPorts struct {
	Namespace string     `json:"namespace"`
	Pod       string     `json:"pod"`
	UID       string     `json:"uid"`     // as the container runtime is told, of static pods too
	Created   time.Time  `json:"created"` // decides between two that claim one port
	Ports     []HostPort `json:"ports"`   // none: the pod has none, or has ended
	// Garbage names what could not be read: `hostIP "10.0.0.300" of hostPort 80`.
	Garbage []string `json:"garbage,omitempty"`
}

// HostPort leads from a port of the node to one of a pod. Numbers are as the object has them.
type HostPort struct {
	HostIP netip.Addr `json:"hostIP,omitzero"` // invalid: each address of the node; unspecified: each of the family
	Port   int32      `json:"port"`            // of the node
	To     int32      `json:"to"`              // of the pod
	Proto  uint8      `json:"proto"`           // 0: one that is not known
}

// FullName returns namespace/pod.
func (p *PodHostPorts) FullName() string { return p.Namespace + "/" + p.Pod }

// Equal says whether the rows say the same.
func (p *PodHostPorts) Equal(o *PodHostPorts) bool {
	return p.Namespace == o.Namespace && p.Pod == o.Pod && p.UID == o.UID && p.Created.Equal(o.Created) &&
		slices.Equal(p.Ports, o.Ports) && slices.Equal(p.Garbage, o.Garbage)
}

// String returns the port as users write it: "127.0.0.1:8080", or "8080" where it
// is one of each address.
func (h HostPort) String() string {
	if !h.HostIP.IsValid() {
		return strconv.Itoa(int(h.Port))
	}
	return net.JoinHostPort(h.HostIP.String(), strconv.Itoa(int(h.Port)))
}

// TableHeader names the columns of TableRow.
func (*PodHostPorts) TableHeader() []string { return []string{"POD", "HOST-PORTS"} }

// TableRow renders the pod under TableHeader.
func (p *PodHostPorts) TableRow() []string {
	ports := make([]string, len(p.Ports))
	for i, h := range p.Ports {
		ports[i] = h.String() + "->" + strconv.Itoa(int(h.To)) + "/" + ProtoName(h.Proto)
	}
	return []string{p.FullName(), strings.Join(ports, ",")}
}

// HostPortsByPod is the primary index of pods with hostPorts: "namespace/pod".
var HostPortsByPod = byText("pod", true, (*PodHostPorts).FullName)

// NewHostPorts makes the table of this node's pods with hostPorts. Writer: internal/k8s.
func NewHostPorts(db *statedb.DB) (statedb.RWTable[*PodHostPorts], error) {
	return made(statedb.NewTable(db, HostPortsName, HostPortsByPod))
}
