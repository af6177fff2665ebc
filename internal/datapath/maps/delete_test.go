// SPDX-License-Identifier: Apache-2.0

package maps_test

import "testing"

// TestDeleteHalfway guards against devices that stay in weft_dev for good: a
// Delete that ends half-way must leave the row, by which the next start finds
// that there is something to delete. Freezing the map stops it at the row.
func TestDeleteHalfway(t *testing.T) {
	s := newSet(t)
	must(t, s.Endpoints.Upsert(row(7, 70)))
	must(t, s.Raw("weft_ep").Freeze())
	if err := s.Endpoints.Delete(7); err == nil {
		t.Fatal("the row of a frozen map was emptied")
	}
	if dev, err := s.Endpoints.Devices(); err != nil || len(dev) != 0 {
		t.Errorf("devices %v, %v: want none", dev, err)
	}
	if rows, err := s.Endpoints.List(); err != nil || len(rows) != 1 || rows[0].ID != 7 {
		t.Errorf("rows %v, %v: want that of endpoint 7", rows, err)
	}
}
