// SPDX-License-Identifier: Apache-2.0

package flow

import "github.com/weft-net/weft/internal/datapath/reason"

// Hint says what to do about a drop, or where there is nothing to mend what it
// means; "" for a reason of a newer datapath than this program knows.
func Hint(name string) string {
	for _, i := range reason.All() {
		if i.Name != name {
			continue
		}
		if i.Remedy != "" {
			return i.Remedy
		}
		return i.Meaning
	}
	return ""
}
