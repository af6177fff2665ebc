// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/google/renameio/v2"

	"github.com/weft-net/weft/internal/masquerade"
)

// reservedPorts is the node's list of ports that the kernel does not choose for
// sockets. link.Links has it.
type reservedPorts interface {
	ReservedPorts() (string, error)
	SetReservedPorts(string) error
}

// reservation keeps the node's sockets off the ports of masqueraded flows. What
// others reserved stays; which ports are ours stands in a file, so that they can
// be given back.
type reservation struct {
	ports reservedPorts
	file  string
}

// ensure reserves the ports from low to high, or with on false gives back what
// was reserved.
func (r reservation) ensure(on bool, low, high uint16) error {
	ours, err := r.ours()
	if err != nil {
		return err
	}
	s, err := r.ports.ReservedPorts()
	if err != nil {
		if !on && ours.Equal(&masquerade.Set{}) {
			return nil
		}
		return err
	}
	have, err := masquerade.ParseSet(s)
	if err != nil {
		return fmt.Errorf("reserved ports: %w", err)
	}
	want := &masquerade.Set{}
	if on {
		want.Add(low, high)
	}
	// Ours from before that are wanted stay ours; of the rest what nobody else has.
	theirs := have.Minus(ours)
	mine := want.Minus(theirs)
	if !mine.Equal(ours) {
		// Noted first: what is noted too much is not there to be given back.
		if err := r.note(mine.Plus(ours)); err != nil {
			return err
		}
	}
	if all := theirs.Plus(want); !all.Equal(have) {
		if err := r.ports.SetReservedPorts(all.String()); err != nil {
			return err
		}
	}
	if !mine.Equal(ours) {
		return r.note(mine)
	}
	return nil
}

func (r reservation) ours() (*masquerade.Set, error) {
	b, err := os.ReadFile(r.file)
	if errors.Is(err, os.ErrNotExist) {
		return &masquerade.Set{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reserved ports: %w", err)
	}
	s, err := masquerade.ParseSet(strings.TrimSpace(string(b)))
	if err != nil {
		return nil, fmt.Errorf("reserved ports %s: %w: remove the file", r.file, err)
	}
	return s, nil
}

func (r reservation) note(s *masquerade.Set) error {
	if s.Equal(&masquerade.Set{}) {
		if err := os.Remove(r.file); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("reserved ports: %w", err)
		}
		return nil
	}
	if err := renameio.WriteFile(r.file, []byte(s.String()+"\n"), 0o600); err != nil {
		return fmt.Errorf("reserved ports: %w", err)
	}
	return nil
}
