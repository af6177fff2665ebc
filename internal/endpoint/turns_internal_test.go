// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

// Fault: one that goes on gets its turn before the beginners of a burst, so that
// each pays for a grace period; or beginners shut it out for good; or a turn is
// lost with one who gave up waiting, and after a few of those no pod starts.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ts := &turns{free: 1}
		if err := ts.take(t.Context(), beginning); err != nil {
			t.Fatal(err)
		}
		var order []string
		line := func(ctx context.Context, name string, kind int) {
			go func() {
				if err := ts.take(ctx, kind); err != nil {
					if !errors.Is(err, context.Canceled) {
						t.Error(err)
					}
					return
				}
				order = append(order, name)
				ts.give()
			}()
			synctest.Wait()
		}
		impatient, giveUp := context.WithCancel(t.Context())
		line(t.Context(), "goes on", goingOn)
		line(impatient, "gave up", beginning)
		line(t.Context(), "begins", beginning)
		giveUp()
		synctest.Wait()
		ts.give()
		synctest.Wait()
		if len(order) != 2 || order[0] != "begins" || order[1] != "goes on" {
			t.Errorf("order %q", order)
		}
		if ts.free != 1 {
			t.Errorf("%d turns free, want 1", ts.free)
		}

		if err := ts.take(t.Context(), beginning); err != nil {
			t.Fatal(err)
		}
		order = nil
		line(t.Context(), "goes on", goingOn)
		for range 2 * longestRow {
			line(t.Context(), "begins", beginning)
		}
		ts.give()
		synctest.Wait()
		for i, who := range order {
			if who == "goes on" {
				if i > longestRow {
					t.Errorf("went on after %d beginners, want %d at most", i, longestRow)
				}
				return
			}
		}
		t.Error("never went on")
	})
}
