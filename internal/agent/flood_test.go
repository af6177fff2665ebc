// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/datapath/maps"
	"github.com/weft-net/weft/internal/rpc"
)

// Guards against a flood that nobody is told of, one that is told of again and
// again, one that is blamed on the wrong pod, and a busy node that is taken for one.
func TestFloodIsNamed(t *testing.T) {
	var total uint64
	young := []maps.Young{{Endpoint: 7, Received: 16000, Peers: 9000}, {Endpoint: 3, Opened: 2}}
	var fails error
	w := &floodWatch{
		capacity: 1000,
		opened:   func() (uint64, error) { return total, fails },
		young:    func() ([]maps.Young, error) { return young, nil },
		name:     func(id uint16) string { return map[uint16]string{7: "shop/web", 3: "shop/db"}[id] },
	}
	now := time.Unix(1000, 0)
	look := func(more uint64, wantBegan bool, state rpc.State, words ...string) {
		t.Helper()
		now, total = now.Add(floodEvery), total+more
		began, err := w.look(now)
		if err != nil || began != wantBegan {
			t.Errorf("began %v, %v; want %v", began, err, wantBegan)
		}
		c := w.Component(now)
		if c.State != state {
			t.Errorf("%+v, want state %s", c, state)
		}
		for _, word := range words {
			if !strings.Contains(c.Message, word) {
				t.Errorf("%q does not say %q", c.Message, word)
			}
		}
	}
	look(1_000_000, false, rpc.StateOK) // of before this agent
	look(900, false, rpc.StateOK)
	look(5000, true, rpc.StateWarning, "5000 new connections in 5s", "sent to shop/web, by 9000 addresses", "weft monitor --pod shop/web")
	look(6000, false, rpc.StateWarning, "6000 new")
	look(10, false, rpc.StateWarning, "until ", "shop/web")
	young = []maps.Young{{Endpoint: 3, Opened: 900, Received: 1, Peers: 2}}
	look(5000, true, rpc.StateWarning, "opened by shop/db, to 2 addresses")
	young = nil
	look(5000, false, rpc.StateWarning, "established ones stay")
	look(0, false, rpc.StateWarning)
	now = now.Add(floodShown)
	look(0, false, rpc.StateOK)
	w.young = func() ([]maps.Young, error) { return nil, errors.New("no map") }
	now, total = now.Add(floodEvery), total+5000
	if began, err := w.look(now); !began || err == nil || w.Component(now).Message == "" {
		t.Errorf("a flood at nobody known: began %v, %v, %+v", began, err, w.Component(now))
	}
	fails = errors.New("no counter")
	if _, err := w.look(now); !errors.Is(err, fails) {
		t.Errorf("the error is lost: %v", err)
	}
}
