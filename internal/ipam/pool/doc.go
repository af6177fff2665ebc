// SPDX-License-Identifier: Apache-2.0

// Package pool cuts pools of addresses into blocks and says which node gets
// which: the allocator behind IPAM modes cluster-pool and multi-pool. It is
// pure: the ledger comes in, the next ledger goes out, and whoever calls writes
// it by compare-and-swap (DATAPATH rule 16).
//
// [Plan] gives back what vanished nodes held, ends quarantines and grants what
// living nodes want. It prefers blocks that were used before and have rested,
// oldest first, over ones that nobody ever had: an allocator that only climbs
// reaches, sooner or later, a range that something outside uses. A block that
// touches a [Hazard] is never granted; what is granted already is never taken
// away, neither by a hazard nor by a change of the pool, but reported.
//
// Nothing here is proportional to the number of blocks: fd00::/8 cut into /126
// costs what 10.0.0.0/16 cut into /24 costs.
package pool
