// SPDX-License-Identifier: Apache-2.0

// Command kernels runs tests of the datapath on kernels of Debian, each in a
// machine that qemu emulates in software, and writes docs/kernels.md from what
// they say. In the machine the same program is the first process (guest.go).
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// options are the flags.
type options struct {
	work    string
	mirror  string
	from    string
	page    string
	results string
	run     string
	resume  bool
	timeout time.Duration
}

func main() {
	if os.Getpid() == 1 {
		guest()
	}
	var o options
	flag.StringVar(&o.work, "work", "build/kernels", "folder for packages, kernels and machines")
	flag.StringVar(&o.mirror, "mirror", "", "archive of Debian; without it the one that this machine's apt uses")
	flag.StringVar(&o.from, "suites", "bookworm,bookworm-backports", "suites whose kernels are booted")
	flag.StringVar(&o.page, "page", "", "page to write; without it none is written")
	flag.StringVar(&o.results, "results", "build/test", "folder for records in the format of go test -json")
	flag.StringVar(&o.run, "run", "", "of each package only tests of this pattern")
	flag.BoolVar(&o.resume, "resume", false, "run only what the records of an earlier run do not hold")
	flag.DurationVar(&o.timeout, "timeout", 90*time.Minute, "longest time for one kernel")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "kernels:", err)
		os.Exit(1)
	}
}

// suite is a package whose tests ask something of the kernel.
type suite struct {
	pkg       string
	run, skip string // patterns
}

// suites leaves out what is no matter of the kernel, and what floods: an
// emulated processor needs a minute for what a real one does in a second.
func suites() []suite {
	return []suite{
		{pkg: "internal/datapath/maps"},
		{pkg: "internal/datapath/rtnl"},
		{pkg: "internal/datapath/link"},
		{pkg: "internal/datapath", skip: "Flood|^Fuzz|^TestChecksumsProperty$|^TestManyAtOnce$"},
		{pkg: "internal/endpoint", skip: "^TestBurst$"},
		{pkg: "internal/agent", run: "^(TestLife|TestOneFamily|TestTunnelMode|TestWithoutAPIServer)$"},
	}
}

func run(ctx context.Context, o options) error {
	bins, err := compile(ctx, o)
	if err != nil {
		return err
	}
	a := archive{dir: o.work, mirror: o.mirror}
	if a.mirror == "" {
		if a.mirror, err = mirror(ctx); err != nil {
			return err
		}
	}
	if err := a.open(ctx, strings.Split(o.from, ",")); err != nil {
		return err
	}
	if err := os.MkdirAll(o.results, 0o755); err != nil {
		return err
	}
	var cols []column
	var errs []error // of one kernel, which keep no other from its turn
	for s := range strings.SplitSeq(o.from, ",") {
		im, err := a.kernel(ctx, s)
		if err != nil {
			return err
		}
		c, err := test(ctx, o, im, bins)
		errs = append(errs, err)
		cols = append(cols, c)
	}
	errs = append(errs, check(cols))
	if o.page != "" {
		f, err := os.Create(o.page)
		if err != nil {
			return err
		}
		defer f.Close()
		errs = append(errs, write(f, os.DirFS("test/kernels"), cols))
	}
	return errors.Join(errs...)
}

// binary is a compiled package with those of its tests that are to run.
type binary struct {
	suite
	file  string
	tests []string
}

// compile makes the test binaries and asks them for their tests.
func compile(ctx context.Context, o options) ([]binary, error) {
	var out []binary
	for _, s := range suites() {
		b := binary{suite: s, file: filepath.Join(o.work, "tests", strings.ReplaceAll(s.pkg, "/", "-")+".test")}
		if _, err := output(ctx, "", "go", "test", "-c", "-ldflags", "-s -w", "-o", b.file, "./"+s.pkg); err != nil {
			return nil, err
		}
		list, err := output(ctx, "", b.file, "-test.list=^Test")
		if err != nil {
			return nil, err
		}
		for name := range strings.FieldsSeq(list) {
			wanted := true
			for _, pattern := range []string{s.run, o.run} {
				wanted = wanted && regexp.MustCompile(pattern).MatchString(name)
			}
			if wanted && (s.skip == "" || !regexp.MustCompile(s.skip).MatchString(name)) {
				b.tests = append(b.tests, name)
			}
		}
		out = append(out, b)
	}
	return out, nil
}

// planned is what is to run on a kernel of which some is known already.
func planned(bins []binary, known results) plan {
	var p plan
	for _, b := range bins {
		left := slices.DeleteFunc(slices.Clone(b.tests), func(name string) bool {
			o, ok := known[b.pkg+" "+name]
			return ok && (o.Action == "pass" || o.Action == "skip")
		})
		if len(left) == 0 {
			continue
		}
		p.Tests = append(p.Tests, testRun{Package: b.pkg, Binary: filepath.Base(b.file), Args: []string{
			"-test.v=test2json", "-test.short", "-test.timeout=80m", "-test.paniconexit0", "-test.run=^(" + strings.Join(left, "|") + ")$",
		}})
	}
	return p
}

// test runs on a kernel what is not known yet, and adds it to the records.
func test(ctx context.Context, o options, im image, bins []binary) (column, error) {
	c := column{name: "Linux " + im.minor(), version: im.version, suite: im.suite}
	file := filepath.Join(o.results, "kernel-"+im.minor()+".json")
	var known []byte
	var err error
	if o.resume {
		if known, err = os.ReadFile(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return c, err
		}
	}
	if c.results, err = read(known); err != nil {
		return c, fmt.Errorf("%s: %w", file, err)
	}
	p := planned(bins, c.results)
	if len(p.Tests) == 0 {
		return c, nil
	}
	raw, died, err := boot(ctx, o, im, bins, p)
	if err != nil {
		return c, errors.Join(died, err)
	}
	raw = append(known, raw...)
	if err := os.WriteFile(file, raw, 0o644); err != nil {
		return c, err
	}
	if c.results, err = read(raw); err != nil {
		return c, err
	}
	for _, b := range bins {
		for _, name := range b.tests {
			if _, ok := c.results[b.pkg+" "+name]; !ok {
				c.results[b.pkg+" "+name] = outcome{Action: "unfinished"}
			}
		}
	}
	return c, died
}

// boot runs the plan on a kernel and returns the records of its tests, and died
// if that was not all of them.
func boot(ctx context.Context, o options, im image, bins []binary, p plan) (raw []byte, died, err error) {
	what, err := json.Marshal(p)
	if err != nil {
		return nil, nil, err
	}
	var files []string
	for _, b := range bins {
		files = append(files, b.file)
	}
	r, err := newInitrd(ctx, im, files, what)
	if err != nil {
		return nil, nil, err
	}
	base := filepath.Join(o.work, im.release)
	m := machine{image: im, initrd: base + ".initrd", console: base + ".console", output: base + ".output", memoryMB: 3072, cpus: 2}
	if err := r.write(m.initrd); err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	start := time.Now()
	fmt.Printf("linux %s (Debian %s of %s): %s\n", im.release, im.version, im.suite, m.output)
	died = m.boot(ctx)
	fmt.Printf("linux %s: %v\n", im.release, time.Since(start).Round(time.Second))
	f, err := os.Open(m.output)
	if err != nil {
		return nil, nil, errors.Join(died, err)
	}
	defer f.Close()
	parts, done, err := split(f)
	if !done && died == nil {
		died = fmt.Errorf("linux %s: the machine ended before its tests: see %s", im.release, m.console)
	}
	if err != nil {
		return nil, died, err
	}
	raw, err = records(context.WithoutCancel(ctx), "linux-"+im.minor(), parts)
	return raw, died, err
}
