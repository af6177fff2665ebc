// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"sync"
	"time"
)

// Bounds of a sysdump.
const (
	maxItem    = 32 << 20  // bytes of one file
	maxArchive = 512 << 20 // bytes of all files, before compression
)

// item is one line of the archive's manifest.
type item struct {
	Path      string `json:"path"`
	Bytes     int    `json:"bytes"`
	Truncated bool   `json:"truncated,omitempty"`
	Error     string `json:"error,omitempty"`
}

// archive is a tar.gz that is written by several goroutines, bounded in size,
// with a manifest of what is in it and what is not, and why.
type archive struct {
	mu       sync.Mutex
	gz       *gzip.Writer
	tw       *tar.Writer
	total    int
	manifest []item
	failed   error // of writing: nothing more can be added
	now      func() time.Time
}

func newArchive(w io.Writer, now func() time.Time) *archive {
	gz := gzip.NewWriter(w)
	return &archive{gz: gz, tw: tar.NewWriter(gz), now: now}
}

// add stores the content under name, cut to the bounds, and notes err beside
// it. What was got before an error is stored as well.
func (a *archive) add(name string, content []byte, err error) {
	it := item{Path: name}
	if len(content) > maxItem {
		content, it.Truncated = content[:maxItem], true
	}
	if err != nil {
		it.Error = redactText(err.Error())
	}
	empty := len(content) == 0 && err != nil // nothing to store
	a.mu.Lock()
	defer a.mu.Unlock()
	if room := maxArchive - a.total; len(content) > room {
		content, it.Truncated = content[:max(room, 0)], true
	}
	it.Bytes = len(content)
	if !empty {
		if a.failed == nil {
			a.failed = a.write(name, content)
		}
	}
	a.manifest = append(a.manifest, it)
}

func (a *archive) write(name string, content []byte) error {
	h := &tar.Header{Name: name, Mode: 0o600, Size: int64(len(content)), ModTime: a.now()}
	if err := a.tw.WriteHeader(h); err != nil {
		return fmt.Errorf("archive %s: %w", name, err)
	}
	if _, err := a.tw.Write(content); err != nil {
		return fmt.Errorf("archive %s: %w", name, err)
	}
	a.total += len(content)
	return nil
}

// merge adds the files of another archive under a directory. Its manifest
// becomes part of this one's.
func (a *archive) merge(dir string, r io.Reader) error {
	gz, err := gzip.NewReader(r)
	if err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	tr := tar.NewReader(gz)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", dir, err)
		}
		content, rerr := io.ReadAll(io.LimitReader(tr, maxItem+1))
		if h.Name == manifestName {
			a.mergeManifest(dir, content)
			continue
		}
		// The name comes from a node: it must not climb out of its directory.
		a.add(path.Join(dir, path.Clean("/"+h.Name)), content, rerr)
		if rerr != nil {
			return fmt.Errorf("%s: %w", dir, rerr)
		}
	}
}

// mergeManifest takes over what the other archive says is missing or cut.
func (a *archive) mergeManifest(dir string, content []byte) {
	var items []item
	if err := json.Unmarshal(content, &items); err != nil {
		a.add(path.Join(dir, manifestName), nil, err)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, it := range items {
		if it.Error != "" || it.Truncated {
			it.Path = path.Join(dir, it.Path)
			a.manifest = append(a.manifest, it)
		}
	}
}

const manifestName = "manifest.json"

// close writes the manifest and ends the archive. It returns how many items
// are missing or incomplete.
func (a *archive) close() (incomplete int, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, it := range a.manifest {
		if it.Error != "" || it.Truncated {
			incomplete++
		}
	}
	b, err := json.MarshalIndent(a.manifest, "", "  ")
	if err == nil && a.failed == nil {
		err = a.write(manifestName, append(b, '\n'))
	}
	return incomplete, errors.Join(a.failed, err, a.tw.Close(), a.gz.Close())
}

// redacted stands where a value was taken out.
const redacted = "REDACTED"

// sensitive says whether a key names something that must not leave the node.
func sensitive(key string) bool {
	k := strings.ToLower(key)
	for _, s := range []string{"token", "password", "passwd", "secret", "authorization", "private", "credential", "apikey", "api-key", "client-key", "certificate-data", "ca-data"} {
		if strings.Contains(k, s) {
			return true
		}
	}
	return false
}

// redactJSON takes out of Kubernetes objects, or any JSON, the values of
// environment variables, of keys that sound like secrets, of arguments like
// --token=..., the last applied configuration (which repeats them all) and
// managed fields. What is not JSON is treated as text.
func redactJSON(b []byte) []byte {
	var v any
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	if err := dec.Decode(&v); err != nil {
		return []byte(redactText(string(b)))
	}
	out, err := json.MarshalIndent(redactValue(v), "", " ")
	if err != nil {
		return nil
	}
	return append(out, '\n')
}

func redactValue(v any) any {
	switch x := v.(type) {
	case []any:
		for i := range x {
			x[i] = redactValue(x[i])
		}
	case map[string]any:
		delete(x, "managedFields")
		for k, val := range x {
			switch val.(type) {
			case string:
				if k == "kubectl.kubernetes.io/last-applied-configuration" || sensitive(k) {
					x[k] = redacted
					continue
				}
			case []any:
				if k == "env" {
					redactEnv(val)
				}
			}
			x[k] = redactValue(val)
		}
	case string:
		return redactText(x)
	}
	return v
}

func redactEnv(v any) {
	list, _ := v.([]any)
	for _, e := range list {
		if m, ok := e.(map[string]any); ok {
			if _, has := m["value"]; has {
				m["value"] = redacted
			}
		}
	}
}

// redactText takes out what follows a sensitive name on each line: "token: x",
// "--password=x", "Authorization: Bearer x".
func redactText(s string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		lines[i] = redactLine(l)
	}
	return strings.Join(lines, "\n")
}

// maxKey bounds how far back from a separator a key is looked for, so that a
// line of megabytes costs no more than its length.
const maxKey = 64

func redactLine(l string) string {
	for at := 0; at < len(l); {
		n := strings.IndexAny(l[at:], ":=")
		if n < 0 {
			return l
		}
		at += n
		word := strings.TrimRight(l[max(0, at-maxKey):at], `"' `)
		if cut := strings.LastIndexAny(word, " \t,{\"'/"); cut >= 0 {
			word = word[cut+1:]
		}
		if sensitive(word) && strings.TrimSpace(l[at+1:]) != "" {
			return l[:at+1] + " " + redacted
		}
		at++
	}
	return l
}
