// SPDX-License-Identifier: Apache-2.0

package kubeproxy

// NodePorts returns the ports by which virtual services are known as kube-proxy's:
// a kernel without IPVS has none to tell it by.
func NodePorts() (map[string]map[uint16]bool, error) {
	o, err := ipvsOwner()
	return o.ports, err
}
