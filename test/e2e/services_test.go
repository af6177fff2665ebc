// SPDX-License-Identifier: Apache-2.0

package e2e

import "testing"

// Services without kube-proxy, inside and from outside.
func TestServices(t *testing.T) { runInOwnLab(t, "-s", "../services/*.txtar", "") }
