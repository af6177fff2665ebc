// SPDX-License-Identifier: Apache-2.0

// Package operator is Weft's operator. In IPAM mode cluster-pool it gives each
// node its ranges of pod addresses; in every mode it removes CiliumNodes whose Node
// is gone. The decisions are internal/ipam/pool's, which is pure; here is what it
// takes to make them on what the API server says now, and to write them down.
//
// What keeps two operators from giving one range twice is the ledger, an object
// that each grant is computed from and that is replaced only in the version that
// was read. The Lease spares work, no more: an operator that sleeps between its
// read and its write finds the ledger changed when it wakes (DATAPATH rule 16).
package operator
