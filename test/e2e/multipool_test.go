// SPDX-License-Identifier: Apache-2.0

package e2e

import "testing"

// Faults: pods get addresses of another pool than they, or their namespace,
// chose, or none; what a node no longer needs of a pool never comes back.
func TestMultiPool(t *testing.T) { runInOwnLab(t, "-p", "own/multipool.txtar", "always") }
