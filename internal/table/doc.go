// SPDX-License-Identifier: Apache-2.0

// Package table holds the row types of the agent's state and their indexes on
// cilium/statedb. Rows are immutable once inserted: to change one, insert a
// modified copy. Each table has exactly one writer, named at its constructor.
//
// Every row renders itself through TableHeader and TableRow, and that one
// rendering serves the CLI, the tests and the dumps.
package table
