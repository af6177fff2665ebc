// SPDX-License-Identifier: Apache-2.0

package e2e

import "testing"

// Pods of nodes on different subnets, whose router knows nothing of pods.
func TestOverlayAcrossRouter(t *testing.T) { runInOwnLab(t, "-o", "../overlay/*.txtar", "") }
