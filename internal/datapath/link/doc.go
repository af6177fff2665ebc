// SPDX-License-Identifier: Apache-2.0

// Package link is the netlink edge: pods' veth pairs, routes, neighbours,
// devices, sysctls and the accept rules in FORWARD. Everything is idempotent and
// every error names the object. What Weft makes can be told by the alias prefix
// "weft:" (links), by protocol 87 (routes) and by the chain WEFT-FORWARD.
package link
