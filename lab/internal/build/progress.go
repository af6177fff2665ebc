// SPDX-License-Identifier: Apache-2.0

package build

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// progress prints one line a component and event, and every quarter of a
// minute one for each that is still at work.
type progress struct {
	mu   sync.Mutex
	out  io.Writer
	t0   time.Time
	live map[string]*counter
}

func newProgress(out io.Writer) *progress {
	return &progress{out: out, t0: time.Now(), live: map[string]*counter{}}
}

func (p *progress) line(name, format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.out, "[%6s] %-11s %s\n", round(time.Since(p.t0)), name, fmt.Sprintf(format, args...))
}

func round(d time.Duration) time.Duration { return d.Round(time.Second) }

func (p *progress) begin(name string) *counter {
	c := &counter{t0: time.Now()}
	p.mu.Lock()
	p.live[name] = c
	p.mu.Unlock()
	return c
}

func (p *progress) end(name string) {
	p.mu.Lock()
	delete(p.live, name)
	p.mu.Unlock()
}

// tick reports what is at work until done is closed.
func (p *progress) tick(done <-chan struct{}) {
	t := time.NewTicker(15 * time.Second)
	defer t.Stop()
	for {
		select {
		case <-done:
			return
		case <-t.C:
		}
		p.mu.Lock()
		live := map[string]string{}
		for name, c := range p.live {
			live[name] = c.String()
		}
		p.mu.Unlock()
		for name, s := range live {
			p.line(name, "%s", s)
		}
	}
}

// counter follows the output of `go build -v`: a line for each package
// compiled and for each module downloaded. It keeps the end for an error.
type counter struct {
	mu       sync.Mutex
	t0       time.Time
	compiled int
	fetched  int
	last     string
	tail     []string
	part     []byte
}

const tailLines = 25

func (c *counter) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.part = append(c.part, b...)
	for {
		i := bytes.IndexByte(c.part, '\n')
		if i < 0 {
			return len(b), nil
		}
		c.add(string(c.part[:i]))
		c.part = c.part[i+1:]
	}
}

func (c *counter) add(line string) {
	switch {
	case strings.HasPrefix(line, "go: downloading "):
		c.fetched++
	case !strings.ContainsAny(line, " \t"):
		c.compiled++
		c.last = line
		return // package names tell nothing about an error
	}
	c.tail = append(c.tail, line)
	if len(c.tail) > tailLines {
		c.tail = c.tail[1:]
	}
}

func (c *counter) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fetched == 0 && c.compiled == 0 {
		return fmt.Sprintf("at work for %s: nothing to compile so far, Go's cache has it", round(time.Since(c.t0)))
	}
	return fmt.Sprintf("at work for %s: %d modules fetched, %d packages compiled, the last %s", round(time.Since(c.t0)), c.fetched, c.compiled, c.last)
}

// Tail is the end of the output without the names of packages.
func (c *counter) Tail() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Join(append(c.tail, string(c.part)), "\n")
}
