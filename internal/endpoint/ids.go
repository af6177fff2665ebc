// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"fmt"
	"time"
)

// maxID is the highest endpoint id: the endpoint map has 4096 rows and row 0
// stands for none.
const maxID = 4095

// ids gives out endpoint ids and generations. Not safe for concurrent use.
type ids struct {
	used [maxID + 1]bool
	last uint16
	n    int
	// generation is the highest given out. One counter serves all ids: it is
	// larger at each reuse of an id, which is all that conntrack entries need.
	generation uint32
}

// advance makes later generations larger than seen, and than those that an
// agent gave out whose state is lost: it could not have made more than one
// endpoint a second since 1970.
func (i *ids) advance(seen uint32, now time.Time) {
	i.generation = max(i.generation, seen, uint32(now.Unix()))
}

// next takes the lowest free id above the last one taken, so that an id rests
// as long as possible.
func (i *ids) next() (id uint16, generation uint32, err error) {
	if i.n == maxID {
		return 0, 0, fmt.Errorf("endpoint ids: all %d are in use: a node holds no more endpoints; delete pods on it", maxID)
	}
	for {
		i.last = i.last%maxID + 1
		if !i.used[i.last] {
			break
		}
	}
	i.take(i.last)
	if i.generation++; i.generation == 0 { // 0 means an empty row
		i.generation = 1
	}
	return i.last, i.generation, nil
}

// take marks id as used; it reports false if it was, or is no id.
func (i *ids) take(id uint16) bool {
	if id == 0 || id > maxID || i.used[id] {
		return false
	}
	i.used[id], i.n = true, i.n+1
	return true
}

func (i *ids) free(id uint16) {
	if id != 0 && id <= maxID && i.used[id] {
		i.used[id], i.n = false, i.n-1
	}
}
