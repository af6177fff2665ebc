// SPDX-License-Identifier: Apache-2.0

package flow

// Hint says in a few words what a drop reason means for the operator, "" where
// the reason has no entry.
func Hint(reason string) string {
	switch reason {
	case "source-address":
		return "the pod sent from an address that is not its own"
	}
	return ""
}
