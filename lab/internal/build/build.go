// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-net/weft/lab/internal/state"
)

// Cache finds what was built.
type Cache struct {
	Dir    string            `json:"-"`
	Bins   map[string]string `json:"bins"`   // component → folder of its files
	Images []string          `json:"images"` // OCI archives
}

// Bin is the path of a program, or of another file that a component holds.
func (c *Cache) Bin(component, name string) string {
	return filepath.Join(c.Bins[component], name)
}

// Has says whether a component was built.
func (c *Cache) Has(component string) bool { return c.Bins[component] != "" }

const indexFile = "current.json"

// Open reads what the last `weft-lab build` left.
func Open() (*Cache, error) {
	dir, err := CacheDir()
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(filepath.Join(dir, indexFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("nothing is built in %s: run `weft-lab build` first", dir)
	}
	if err != nil {
		return nil, fmt.Errorf("cache %s: %w", dir, err)
	}
	c := &Cache{Dir: dir}
	if err := json.Unmarshal(b, c); err != nil {
		return nil, fmt.Errorf("cache %s: %s: %w; run `weft-lab build`", dir, indexFile, err)
	}
	for name, d := range c.Bins {
		if _, err := os.Stat(d); err != nil {
			return nil, fmt.Errorf("cache %s: %s is gone: run `weft-lab build`", dir, name)
		}
	}
	return c, nil
}

// Options say what to build.
type Options struct {
	E2E  bool // e2e.test and ginkgo too
	Out  io.Writer
	Jobs int // components at once
}

// maxBuildTime bounds one component: a cold Kubernetes on one slow core stays below.
const maxBuildTime = 45 * time.Minute

// Run builds what is missing. It may be interrupted at any time: a component
// appears in the cache only when it is whole.
func Run(ctx context.Context, o Options) (*Cache, error) {
	dir, err := CacheDir()
	if err != nil {
		return nil, err
	}
	source, err := sourceDir()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(dir, "bin"), 0o755); err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	p := newProgress(o.Out)
	lock, err := state.Lock(ctx, filepath.Join(dir, "build.lock"), maxBuildTime, func(holder string) {
		p.line("lock", "another build (%s) is at work, waiting for it", holder)
	})
	if err != nil {
		return nil, err
	}
	defer lock.Unlock()
	done := make(chan struct{})
	defer close(done)
	go p.tick(done)

	b := &builder{dir: dir, source: source, progress: p, cache: &Cache{Dir: dir, Bins: map[string]string{}}}
	if b.goVersion, err = goVersion(ctx); err != nil {
		return nil, err
	}
	if old, err := Open(); err == nil && !o.E2E && old.Has("e2e") {
		b.cache.Bins["e2e"] = old.Bins["e2e"] // still good, and dear
	}
	if err := b.all(ctx, components(o.E2E), max(o.Jobs, 1)); err != nil {
		if ctx.Err() != nil {
			err = errors.New("build interrupted: what was whole is kept")
		}
		return nil, err
	}
	if err := b.images(ctx); err != nil {
		return nil, err
	}
	if err := b.index(); err != nil {
		return nil, err
	}
	b.prune()
	p.line("done", "%s in %s", diskUse(dir), dir)
	return b.cache, nil
}

func goVersion(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOVERSION").Output()
	if err != nil {
		return "", fmt.Errorf("go: %w; install Go 1.26 or later and put it on PATH", err)
	}
	return strings.TrimSpace(string(out)), nil
}

type builder struct {
	dir, source string
	goVersion   string
	progress    *progress
	cache       *Cache
}

// all makes the components, some at a time: while one links, which takes one
// core, another compiles.
func (b *builder) all(ctx context.Context, list []component, jobs int) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(jobs)
	var missing []string
	for _, c := range list {
		key, err := c.key(b.source, b.goVersion)
		if err != nil {
			return err
		}
		target := filepath.Join(b.dir, "bin", c.name+"-"+key)
		b.cache.Bins[c.name] = target
		if _, err := os.Stat(target); err == nil {
			continue
		}
		missing = append(missing, c.name)
		g.Go(func() error { return b.one(ctx, c, target) })
	}
	if len(missing) == 0 {
		b.progress.line("programs", "all in the cache")
	}
	return g.Wait()
}

// one makes a component in a folder of its own and renames it into place.
func (b *builder) one(ctx context.Context, c component, target string) error {
	ctx, cancel := context.WithTimeout(ctx, maxBuildTime)
	defer cancel()
	if ctx.Err() != nil {
		return ctx.Err() // another component failed, or the user has had enough
	}
	tmp, err := os.MkdirTemp(filepath.Join(b.dir, "bin"), ".tmp-"+c.name+"-")
	if err != nil {
		return fmt.Errorf("build %s: %w", c.name, err)
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil {
		return fmt.Errorf("build %s: %w", c.name, err)
	}
	b.progress.line(c.name, "begins (cold: about %s)", c.cost)
	t0 := time.Now()
	counter := b.progress.begin(c.name)
	defer b.progress.end(c.name)
	if len(c.debs) > 0 {
		err = unpackDebs(ctx, c.debs, tmp, counter)
	} else {
		err = b.compile(ctx, c, tmp, counter)
	}
	if ctx.Err() != nil {
		return fmt.Errorf("build %s: %w", c.name, ctx.Err())
	}
	if err != nil {
		return fmt.Errorf("build %s: %w\n%s", c.name, err, counter.Tail())
	}
	if err := os.Rename(tmp, target); err != nil {
		return fmt.Errorf("build %s: %w", c.name, err)
	}
	b.progress.line(c.name, "built in %s", round(time.Since(t0)))
	return nil
}

func (b *builder) compile(ctx context.Context, c component, dir string, out io.Writer) error {
	dirFlag := filepath.Join(b.source, c.module)
	args := []string{"build", "-v", "-o", dir + "/"}
	if c.tags != "" {
		args = append(args, "-tags", c.tags)
	}
	if c.ldflags != "" {
		args = append(args, "-ldflags", c.ldflags)
	}
	if err := goRun(ctx, dirFlag, out, append(args, c.pkgs...)...); err != nil {
		return err
	}
	for from, to := range c.rename {
		if err := os.Rename(filepath.Join(dir, from), filepath.Join(dir, to)); err != nil {
			return err
		}
	}
	if c.test == "" {
		return nil
	}
	binary := filepath.Join(dir, filepath.Base(c.test)+".test")
	return goRun(ctx, dirFlag, out, "test", "-c", "-v", "-ldflags", c.ldflags, "-o", binary, c.test)
}

// goRun runs the go command in a process group of its own, so that an
// interrupt ends its compilers as well.
func goRun(ctx context.Context, dir string, out io.Writer, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=-buildvcs=false")
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("go %s in %s: %w", args[0], dir, err)
	}
	return nil
}

func (b *builder) index() error {
	j, err := json.MarshalIndent(b.cache, "", "  ")
	if err != nil {
		return fmt.Errorf("cache index: %w", err)
	}
	return state.WriteFile(filepath.Join(b.dir, indexFile), append(j, '\n'), 0o644)
}

// prune deletes what former versions left, unless a lab may still run it.
func (b *builder) prune() {
	labs, err := state.List()
	if err != nil || len(labs) > 0 {
		return
	}
	keep := map[string]bool{}
	for _, d := range b.cache.Bins {
		keep[d] = true
	}
	entries, err := os.ReadDir(filepath.Join(b.dir, "bin"))
	if err != nil {
		return
	}
	for _, e := range entries {
		d := filepath.Join(b.dir, "bin", e.Name())
		if keep[d] {
			continue
		}
		if err := os.RemoveAll(d); err == nil {
			b.progress.line("prune", "%s", e.Name())
		}
	}
}

func diskUse(dir string) string {
	var sum int64
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if i, ierr := d.Info(); ierr == nil {
				sum += i.Size()
			}
		}
		return nil // what cannot be read is left out of the figure
	})
	return fmt.Sprintf("%.1f GiB", float64(sum)/(1<<30))
}
