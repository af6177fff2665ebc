// SPDX-License-Identifier: Apache-2.0

package labtest

import (
	"net/netip"
	"time"
)

// These are the parts of API objects that the tests read. The tests see the
// cluster as kubectl shows it, so they need none of Kubernetes' packages.

// Meta of any object.
type Meta struct {
	Name              string            `json:"name"`
	Namespace         string            `json:"namespace"`
	UID               string            `json:"uid"`
	Labels            map[string]string `json:"labels"`
	DeletionTimestamp *time.Time        `json:"deletionTimestamp"`
}

// Condition of a node or pod.
type Condition struct {
	Type               string    `json:"type"`
	Status             string    `json:"status"`
	Reason             string    `json:"reason"`
	Message            string    `json:"message"`
	LastTransitionTime time.Time `json:"lastTransitionTime"`
}

// Node is a node.
type Node struct {
	Metadata Meta `json:"metadata"`
	Spec     struct {
		PodCIDR  string   `json:"podCIDR"`
		PodCIDRs []string `json:"podCIDRs"`
		Taints   []struct {
			Key    string `json:"key"`
			Effect string `json:"effect"`
		} `json:"taints"`
	} `json:"spec"`
	Status struct {
		Addresses []struct {
			Type string `json:"type"`
			Text string `json:"address"`
		} `json:"addresses"`
		Conditions []Condition `json:"conditions"`
	} `json:"status"`
}

// Name of the node.
func (n *Node) Name() string { return n.Metadata.Name }

// Addr is the node's InternalIP of a family, or an invalid address.
func (n *Node) Addr(v6 bool) netip.Addr {
	for _, a := range n.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Text); err == nil && a.Type == "InternalIP" && ip.Is6() == v6 {
			return ip
		}
	}
	return netip.Addr{}
}

// PodCIDR is the node's pod range of a family, or an invalid prefix.
func (n *Node) PodCIDR(v6 bool) netip.Prefix {
	for _, s := range n.Spec.PodCIDRs {
		if p, err := netip.ParsePrefix(s); err == nil && p.Addr().Is6() == v6 {
			return p
		}
	}
	return netip.Prefix{}
}

// Condition finds a condition by its type.
func (n *Node) Condition(kind string) (Condition, bool) { return find(n.Status.Conditions, kind) }

func find(list []Condition, kind string) (Condition, bool) {
	for _, c := range list {
		if c.Type == kind {
			return c, true
		}
	}
	return Condition{}, false
}

// Pod is a pod.
type Pod struct {
	Metadata Meta `json:"metadata"`
	Spec     struct {
		NodeName string `json:"nodeName"`
	} `json:"spec"`
	Status struct {
		Phase             string      `json:"phase"`
		PodIPs            []PodIP     `json:"podIPs"`
		Conditions        []Condition `json:"conditions"`
		ContainerStatuses []struct {
			Name         string `json:"name"`
			Ready        bool   `json:"ready"`
			RestartCount int    `json:"restartCount"`
			ContainerID  string `json:"containerID"`
		} `json:"containerStatuses"`
	} `json:"status"`
}

// PodIP is one address of a pod.
type PodIP struct {
	IP netip.Addr `json:"ip"`
}

// Addr is the pod's address of a family, or an invalid one.
func (p *Pod) Addr(v6 bool) netip.Addr {
	for _, a := range p.Status.PodIPs {
		if a.IP.Is6() == v6 {
			return a.IP
		}
	}
	return netip.Addr{}
}

// Ready says whether the pod is.
func (p *Pod) Ready() bool {
	c, ok := find(p.Status.Conditions, "Ready")
	return ok && c.Status == "True" && p.Metadata.DeletionTimestamp == nil
}

// PodList is a list of pods.
type PodList struct {
	Items []Pod `json:"items"`
}

// Endpoint is one line of `weft endpoint list -o json` on a node.
type Endpoint struct {
	ID          uint16     `json:"id"`
	Kind        string     `json:"kind"`
	Namespace   string     `json:"namespace"`
	Pod         string     `json:"pod"`
	ContainerID string     `json:"containerID"`
	Netns       string     `json:"netns"`
	HostIfName  string     `json:"hostIfName"`
	HostIfIndex int        `json:"hostIfIndex"`
	MAC         string     `json:"mac"`
	HostMAC     string     `json:"hostMAC"`
	IPv4        netip.Addr `json:"ipv4"`
	IPv6        netip.Addr `json:"ipv6"`
	State       string     `json:"state"`
}
