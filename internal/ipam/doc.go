// SPDX-License-Identifier: Apache-2.0

// Package ipam gives out the addresses of this node's pods from the ranges that
// the cluster gave to the node. It is pure: no kernel, no API server; the clock
// is passed in.
//
// A released address rests before it is given again, at least [Rest] and oldest
// first, because peers, DNS caches and conntrack tables still speak of its old
// owner (DATAPATH rule 15).
package ipam
