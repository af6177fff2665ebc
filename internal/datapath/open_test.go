// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"testing"

	"github.com/weft-net/weft/internal/datapath"
)

func TestOpen(t *testing.T) {
	open(t, datapath.Options{IPv4: true, IPv6: true})
}
