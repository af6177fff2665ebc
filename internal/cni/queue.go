// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const queueSuffix = ".json"

// Queue is a directory of DELs that no agent could take: one file an
// attachment, so that repeated DELs are one, each made whole before it gets its
// name.
type Queue struct{ Dir string }

func (q Queue) path(a Attachment) string {
	sum := sha256.Sum256([]byte(a.ContainerID + "/" + a.IfName))
	return filepath.Join(q.Dir, hex.EncodeToString(sum[:16])+queueSuffix)
}

// Put queues a DEL. It makes the directory if need be.
func (q Queue) Put(r Request) error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("queue %s: %w", q.Dir, err)
	}
	if err := os.MkdirAll(q.Dir, 0o700); err != nil {
		return fmt.Errorf("queue %s: %w", q.Dir, err)
	}
	f, err := os.CreateTemp(q.Dir, ".new-*")
	if err != nil {
		return fmt.Errorf("queue %s: %w", q.Dir, err)
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), q.path(r.attachment()))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("queue %s: %w", q.Dir, err), os.Remove(f.Name()))
	}
	return nil
}

func (r Request) attachment() Attachment {
	return Attachment{ContainerID: r.ContainerID, IfName: r.IfName}
}

// Has reports whether a DEL of the attachment is queued.
func (q Queue) Has(a Attachment) bool {
	_, err := os.Stat(q.path(a))
	return err == nil
}

// Remove takes an attachment's DEL out of the queue, if it is there.
func (q Queue) Remove(a Attachment) error {
	if err := os.Remove(q.path(a)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("queue %s: %w", q.Dir, err)
	}
	return nil
}

// Queued is one entry of a queue. Err says why a file is none; its Request is
// empty then.
type Queued struct {
	Path    string
	Request Request
	Err     error
}

// List reads the queue. A directory that is not there is an empty queue.
func (q Queue) List() ([]Queued, error) {
	files, err := os.ReadDir(q.Dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("queue %s: %w", q.Dir, err)
	}
	var out []Queued
	for _, f := range files {
		if strings.HasPrefix(f.Name(), ".") || !strings.HasSuffix(f.Name(), queueSuffix) {
			continue
		}
		e := Queued{Path: filepath.Join(q.Dir, f.Name())}
		e.Request, e.Err = readQueued(e.Path)
		if errors.Is(e.Err, os.ErrNotExist) {
			continue // taken meanwhile
		}
		out = append(out, e)
	}
	return out, nil
}

func readQueued(path string) (Request, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return Request{}, err
	}
	if fi.Size() > MaxMessage {
		return Request{}, fmt.Errorf("%d bytes are more than the limit of %d", fi.Size(), MaxMessage)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return Request{}, err
	}
	return parseQueued(b)
}

func parseQueued(b []byte) (Request, error) {
	var r Request
	if err := json.Unmarshal(b, &r); err != nil {
		return Request{}, err
	}
	if r.Command != "DEL" || r.ContainerID == "" || r.IfName == "" {
		return Request{}, fmt.Errorf("is not a DEL of an attachment: command %q, container %q, interface %q", r.Command, r.ContainerID, r.IfName)
	}
	return r, nil
}
