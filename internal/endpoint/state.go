// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/renameio/v2"

	"github.com/weft-net/weft/internal/ipam"
	"github.com/weft-net/weft/internal/table"
)

// stateVersion is that of the state file's format. A reader takes no other.
const stateVersion = 1

// stateDoc is the state file.
type stateDoc struct {
	Version    int               `json:"version"`
	Generation uint32            `json:"generation"`
	LastID     uint16            `json:"lastID"`
	Endpoints  []*table.Endpoint `json:"endpoints"`
	// Retiring are endpoints whose DEL was answered but whose link or conntrack
	// entries may be there yet; their addresses are not free.
	Retiring []*table.Endpoint `json:"retiring,omitempty"`
	Resting  []ipam.Released   `json:"resting,omitempty"`
}

// StateError says that the state file could not be written.
type StateError struct {
	Path string
	Err  error
}

func (e *StateError) Error() string {
	return fmt.Sprintf("state file %s: %v: free space or fix the mount of %s on the node", e.Path, e.Err, filepath.Dir(e.Path))
}

// Unwrap returns the cause.
func (e *StateError) Unwrap() error { return e.Err }

// stateFile writes the state. Writers that come while one writes share the next
// write, so that a burst costs few.
type stateFile struct {
	path string

	mu     sync.Mutex
	wanted uint64 // tickets drawn
	write  sync.Mutex
	done   uint64 // highest ticket that a write covers; under write
	buf    []byte // of the last write, for the next; under write
}

// save returns once a snapshot taken after its call is on disk.
func (s *stateFile) save(snapshot func(buf []byte) ([]byte, error)) error {
	s.mu.Lock()
	s.wanted++
	mine := s.wanted
	s.mu.Unlock()

	s.write.Lock()
	defer s.write.Unlock()
	if s.done >= mine {
		return nil
	}
	s.mu.Lock()
	covers := s.wanted
	s.mu.Unlock()
	b, err := snapshot(s.buf[:0])
	if err != nil {
		return &StateError{Path: s.path, Err: err}
	}
	s.buf = b
	// The temporary file lies beside the target: nothing else is known to be on
	// the same file system.
	if err := renameio.WriteFile(s.path, b, 0o600, renameio.WithTempDir(filepath.Dir(s.path))); err != nil {
		return &StateError{Path: s.path, Err: err}
	}
	s.done = covers
	return nil
}

// encode appends the document to b as encoding/json would, from endpoints and a
// list of what rests (encodeResting) that are encoded already: of 110 endpoints,
// an ADD changes one.
func (d *stateDoc) encode(b []byte, encoded func(*table.Endpoint) ([]byte, error), resting []byte) ([]byte, error) {
	list := func(b []byte, eps []*table.Endpoint) ([]byte, error) {
		b = append(b, '[')
		for i, ep := range eps {
			if i > 0 {
				b = append(b, ",\n"...)
			}
			e, err := encoded(ep)
			if err != nil {
				return nil, err
			}
			b = append(b, e...)
		}
		return append(b, ']'), nil
	}
	b = fmt.Appendf(b, `{"version":%d,"generation":%d,"lastID":%d,"endpoints":`, d.Version, d.Generation, d.LastID)
	b, err := list(b, d.Endpoints)
	if err != nil {
		return nil, err
	}
	if b, err = list(append(b, `,"retiring":`...), d.Retiring); err != nil {
		return nil, err
	}
	b = append(b, `,"resting":`...)
	b = append(b, resting...)
	return append(b, "}\n"...), nil
}

func encodeResting(rs []ipam.Released) []byte {
	b := append(make([]byte, 0, 2+100*len(rs)), '[')
	for i, r := range rs {
		if i > 0 {
			b = append(b, ',')
		}
		b = r.Addr.AppendTo(append(b, `{"addr":"`...))
		b = r.At.AppendFormat(append(b, `","at":"`...), time.RFC3339Nano)
		b = append(b, `"}`...)
	}
	return append(b, ']')
}

// corruptError is returned by load for a file that is there but makes no sense.
type corruptError struct {
	err     error
	movedTo string
	written time.Time // of the corrupt file: nothing was released since
}

func (e *corruptError) Error() string { return e.err.Error() }

// errNoState is wrapped by load for a file that is not there.
var errNoState = errors.New("is not there")

// load reads the state file. A corrupt one is moved aside.
func (s *stateFile) load(now time.Time) (*stateDoc, error) {
	b, err := os.ReadFile(s.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("state file %s: %w", s.path, errNoState)
	}
	if err != nil {
		return nil, fmt.Errorf("state file %s: %w", s.path, err)
	}
	doc, err := parseState(b)
	if err == nil {
		return doc, nil
	}
	corrupt := &corruptError{err: err, movedTo: s.path + ".corrupt-" + now.UTC().Format("20060102T150405.000Z"), written: now}
	if fi, e := os.Stat(s.path); e == nil {
		corrupt.written = fi.ModTime()
	}
	if err := os.Rename(s.path, corrupt.movedTo); err != nil {
		return nil, fmt.Errorf("state file %s: corrupt (%w) and cannot be moved aside: %w", s.path, corrupt.err, err)
	}
	return nil, corrupt
}

// parseState decodes and checks a state file.
func parseState(b []byte) (*stateDoc, error) {
	var doc stateDoc
	if err := json.Unmarshal(b, &doc); err != nil {
		return nil, err
	}
	if doc.Version != stateVersion {
		return nil, fmt.Errorf("has format version %d, this agent reads %d", doc.Version, stateVersion)
	}
	seen := map[uint16]bool{}
	for _, ep := range append(append([]*table.Endpoint{}, doc.Endpoints...), doc.Retiring...) {
		switch {
		case ep == nil:
			return nil, errors.New("holds an empty endpoint")
		case ep.ID == 0 || ep.ID > maxID:
			return nil, fmt.Errorf("endpoint %d: id is not within 1 to %d", ep.ID, maxID)
		case seen[ep.ID]:
			return nil, fmt.Errorf("endpoint %d: stands twice", ep.ID)
		case ep.ContainerID == "" || ep.IfName == "" || ep.HostIfName == "":
			return nil, fmt.Errorf("endpoint %d: container, interface or link is missing", ep.ID)
		case !ep.IPv4.IsValid() && !ep.IPv6.IsValid():
			return nil, fmt.Errorf("endpoint %d: has no address", ep.ID)
		case ep.IPv4.IsValid() && !ep.IPv4.Is4(), ep.IPv6.IsValid() && !ep.IPv6.Is6():
			return nil, fmt.Errorf("endpoint %d: an address is of the wrong family", ep.ID)
		}
		if _, err := vethOf(ep); err != nil {
			return nil, fmt.Errorf("endpoint %d: %w", ep.ID, err)
		}
		seen[ep.ID] = true
	}
	return &doc, nil
}
