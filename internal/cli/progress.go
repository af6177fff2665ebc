// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"
)

// progress shows how far a test has come: on a terminal one line that is
// rewritten, elsewhere a line every few seconds.
type progress struct {
	mu    sync.Mutex
	w     io.Writer
	live  bool
	every time.Duration
	last  time.Time
	open  bool // a live line without its end
}

func newProgress(w io.Writer) *progress {
	p := &progress{w: w, every: 3 * time.Second}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.live, p.every = true, 100*time.Millisecond
	}
	return p
}

// Stage begins a new step.
func (p *progress) Stage(msg string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.finish()
	fmt.Fprintln(p.w, msg)
}

// Cells shows how many cells are done.
func (p *progress) Cells(done, failed, all int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if done < all && now.Sub(p.last) < p.every {
		return
	}
	p.last = now
	text := fmt.Sprintf("%d of %d cells", done, all)
	if failed > 0 {
		text += fmt.Sprintf(", %d failed", failed)
	}
	if !p.live {
		fmt.Fprintln(p.w, text)
		return
	}
	fmt.Fprintf(p.w, "\r%s\x1b[K", text)
	p.open = true
}

// end leaves the cursor on a line of its own.
func (p *progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.finish()
}

func (p *progress) finish() {
	if p.open {
		fmt.Fprintln(p.w)
		p.open = false
	}
}
