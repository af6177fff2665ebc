// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"

	"github.com/google/renameio/v2"

	"github.com/weft-net/weft/internal/datapath/link"
)

// boundNote says what a device of the node had before Weft, to be given back, and
// what it was given. What is otherwise by now, somebody else has set.
type boundNote struct {
	Index int        `json:"index"` // another one is another device of the same name
	Had   link.Sizes `json:"had"`
	Set   link.Sizes `json:"set"`
}

// before returns what the device would have without Weft.
func (n boundNote) before(now link.Sizes) link.Sizes {
	theirs := func(had, set, now int) int {
		if now == set {
			return had
		}
		return now
	}
	return link.Sizes{
		GSO4: theirs(n.Had.GSO4, n.Set.GSO4, now.GSO4), GRO4: theirs(n.Had.GRO4, n.Set.GRO4, now.GRO4),
		GSO6: theirs(n.Had.GSO6, n.Set.GSO6, now.GSO6), GRO6: theirs(n.Had.GRO6, n.Set.GRO6, now.GRO6),
	}
}

// raised returns s with bounds of at least big. A larger one stays. So does
// IPv6's of what comes in: put together beyond 64 KiB it carries a jumbo header, and
// a connection from before, or of somebody else's containers, whose segments leave
// no room for it would not be forwarded any more (bpf/lib/jumbo.h).
func raised(s link.Sizes, big link.BigTCP) link.Sizes {
	return link.Sizes{GSO4: max(s.GSO4, big.IPv4), GRO4: max(s.GRO4, big.IPv4), GSO6: max(s.GSO6, big.IPv6), GRO6: s.GRO6}
}

// put raises the bounds of the devices that carry, and gives all others of which
// there is a note back what they had.
func (b *bigTCP) put(all, carry []link.SizedDevice, big link.BigTCP, notes map[string]boundNote) error {
	carries := map[int]bool{}
	for _, d := range carry {
		carries[d.Index] = true
	}
	next := map[string]boundNote{}
	want := map[int]link.Sizes{}
	for _, d := range all {
		had := d.Sizes
		n, noted := notes[d.Name]
		if noted = noted && n.Index == d.Index; noted {
			had = n.before(d.Sizes)
		}
		to := had
		if carries[d.Index] {
			to = raised(had, big)
		}
		if to != had {
			next[d.Name] = boundNote{Index: d.Index, Had: had, Set: to}
		} else if !noted {
			continue
		}
		want[d.Index] = to
	}
	// Noted first: what is noted too much is not there to be given back.
	both := maps.Clone(notes)
	maps.Copy(both, next)
	if err := b.notes.save(notes, both); err != nil {
		return err
	}
	var errs []error
	for _, d := range all {
		to, ok := want[d.Index]
		if !ok || to == d.Sizes {
			continue
		}
		if err := b.links.SetSizes(d.Index, d.Known(to)); err != nil {
			errs = append(errs, fmt.Errorf("device %s: %w", d.Name, err))
			if n, noted := notes[d.Name]; noted { // to be tried again
				next[d.Name] = n
			}
		}
	}
	return errors.Join(append(errs, b.notes.save(both, next))...)
}

// boundNotes is the file of what devices had, by name.
type boundNotes struct{ file string }

func (f boundNotes) load() (map[string]boundNote, error) {
	notes := map[string]boundNote{}
	b, err := os.ReadFile(f.file)
	if errors.Is(err, os.ErrNotExist) {
		return notes, nil
	}
	if err != nil {
		return nil, fmt.Errorf("bounds of super-packets: %w", err)
	}
	if err := json.Unmarshal(b, &notes); err != nil {
		return nil, fmt.Errorf("bounds of super-packets: %s: %w: remove the file; devices keep what they have", f.file, err)
	}
	return notes, nil
}

func (f boundNotes) save(have, notes map[string]boundNote) error {
	switch {
	case maps.Equal(have, notes):
		return nil
	case len(notes) == 0:
		if err := os.Remove(f.file); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("bounds of super-packets: %w", err)
		}
		return nil
	}
	b, err := json.Marshal(notes)
	if err == nil {
		err = renameio.WriteFile(f.file, append(b, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("bounds of super-packets: %w", err)
	}
	return nil
}
