// SPDX-License-Identifier: Apache-2.0

// Package health decides whether this node may take pods, and says how each part
// of the agent does.
//
// Ready means proven: a real ADD, a ping of each family and a DEL on this node,
// and then a round trip to the health address of a ready peer. Only after that
// the CNI configuration appears and the taint goes. What was proven once in this
// boot stays so: neither a restart of the agent nor a partition takes it back
// (DATAPATH rule 18).
package health
