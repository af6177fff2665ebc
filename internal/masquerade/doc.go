// SPDX-License-Identifier: Apache-2.0

// Package masquerade decides what is masqueraded and with which address and
// ports: the settings of ip-masq-agent, the choice of a device's address, and
// the arithmetic of the node's reserved ports. It is pure; internal/agent puts
// the outcome into effect.
package masquerade
