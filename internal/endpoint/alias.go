// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/weft-net/weft/internal/datapath/link"
	"github.com/weft-net/weft/internal/table"
)

// aliasOf says on the host's end of a pair whose it is, for people who read
// `ip link` and for a start without a state file. The kernel holds 255 bytes;
// the name stands last because it may be cut.
func aliasOf(ep *table.Endpoint) string {
	return fmt.Sprintf("%sid=%d gen=%d kind=%s cid=%s if=%s name=%s/%s",
		link.AliasPrefix, ep.ID, ep.Generation, ep.Kind, ep.ContainerID, ep.IfName, ep.Namespace, ep.Pod)
}

// parseAlias reads what aliasOf wrote. ok is false if the endpoint cannot be
// told from it.
func parseAlias(alias string) (ep table.Endpoint, ok bool) {
	rest, ours := strings.CutPrefix(alias, link.AliasPrefix)
	if !ours {
		return ep, false
	}
	for field := range strings.FieldsSeq(rest) {
		k, v, _ := strings.Cut(field, "=")
		switch k {
		case "id":
			n, err := strconv.ParseUint(v, 10, 16)
			if err != nil {
				return ep, false
			}
			ep.ID = uint16(n)
		case "gen":
			n, err := strconv.ParseUint(v, 10, 32)
			if err != nil {
				return ep, false
			}
			ep.Generation = uint32(n)
		case "kind":
			ep.Kind = table.EndpointKind(v)
		case "cid":
			ep.ContainerID = v
		case "if":
			ep.IfName = v
		case "name":
			ep.Namespace, ep.Pod, _ = strings.Cut(v, "/")
		}
	}
	return ep, ep.ID != 0 && ep.Generation != 0 && ep.ContainerID != "" && ep.IfName != "" && ep.Kind != ""
}
