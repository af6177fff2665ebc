// SPDX-License-Identifier: Apache-2.0

package kubeproxy

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

const (
	// toolTimeout bounds one call. Rules of 10,000 services take seconds.
	toolTimeout = time.Minute
	// lockWait is how long iptables waits for its lock, in seconds.
	lockWait = "20"
	// maxFailures is how many objects of a table are tried one by one after a
	// failure: what goes wrong more often goes wrong with all.
	maxFailures = 20
)

// table is what one table of iptables holds of kube-proxy.
type table struct {
	bin, name string // iptables-nft, nat
	chains    []string
	jumps     []rule              // of built-in chains, to chains
	foreign   []rule              // of others' chains, to chains: they keep those alive
	to        map[string][]string // which chains a chain's rules jump to
}

// rule is one as iptables-save writes it.
type rule struct{ chain, spec, target string }

func (r rule) String() string { return "-A " + r.chain + " " + r.spec }

func (t *table) where() string { return t.bin + " " + t.name }

func (t *table) objects() []Object {
	var out []Object
	for _, r := range t.jumps {
		out = append(out, Object{KindRule, t.where(), r.String()})
	}
	for _, c := range t.chains {
		out = append(out, Object{KindChain, t.where(), c})
	}
	return out
}

// iptables returns the tables of all backends that hold something of kube-proxy.
// The legacy variant is asked only where the kernel has loaded tables of it, which
// proc tells: elsewhere its programs need not be there.
func iptables(ctx context.Context) ([]table, error) {
	var out []table
	var errs []error
	for _, f := range []struct{ bin, names string }{{"iptables", "ip_tables_names"}, {"ip6tables", "ip6_tables_names"}} {
		bins := []string{f.bin + "-nft"}
		if b, err := os.ReadFile("/proc/thread-self/net/" + f.names); err == nil && len(bytes.TrimSpace(b)) > 0 {
			bins = append(bins, f.bin+"-legacy")
		}
		for _, bin := range bins {
			tables, err := save(ctx, bin)
			out, errs = append(out, tables...), append(errs, err)
		}
	}
	return out, errors.Join(errs...)
}

// save reads the rules of a backend as they come: there may be a hundred thousand.
func save(ctx context.Context, bin string) ([]table, error) {
	ctx, cancel := context.WithTimeout(ctx, toolTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin+"-save")
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	tables, unread, err := parseSave(out, bin)
	if err != nil {
		cancel() // it may wait for a reader
	}
	if werr := cmd.Wait(); werr != nil && err == nil {
		err = fmt.Errorf("%s-save: %w: %s", bin, werr, strings.TrimSpace(errOut.String()))
	}
	for _, name := range unread {
		err = errors.Join(err, hidden(ctx, bin, name))
	}
	return tables, err
}

// hidden says what of kube-proxy is in a table that iptables cannot read because
// of somebody's rules there, nil for nothing.
func hidden(ctx context.Context, bin, name string) error {
	family := "ip"
	if strings.HasPrefix(bin, "ip6") {
		family = "ip6"
	}
	out, err := run(ctx, "", "nft", "list", "chains", family)
	if err != nil {
		return fmt.Errorf("%s %s: somebody has put rules there that iptables cannot read: %w", bin, name, err)
	}
	var chains []string
	in := ""
	for line := range strings.Lines(out) {
		switch f := strings.Fields(line); {
		case len(f) > 2 && f[0] == "table":
			in = f[2]
		case len(f) > 1 && f[0] == "chain" && in == name && ownChain(f[1]):
			chains = append(chains, f[1])
		}
	}
	if len(chains) == 0 {
		return nil
	}
	return fmt.Errorf("%d chains stay in %s %s, %s among them: somebody has put rules there that iptables cannot read; "+
		"take those out and repeat, or remove the chains with nft", len(chains), bin, name, chains[0])
}

// parseSave returns the tables that hold something of kube-proxy, and the names of
// those that could not be read.
func parseSave(r io.Reader, bin string) (out []table, unread []string, err error) {
	t := table{}
	builtin := map[string]bool{}
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		line := sc.Text()
		switch {
		case strings.HasPrefix(line, "*"):
			t = table{bin: bin, name: line[1:], to: map[string][]string{}}
			clear(builtin)
		case strings.HasPrefix(line, ":"):
			name, policy, _ := strings.Cut(line[1:], " ")
			if !strings.HasPrefix(policy, "-") {
				builtin[name] = true
			} else if ownChain(name) {
				t.chains = append(t.chains, name)
			}
		case strings.HasPrefix(line, "-A "):
			t.add(line[len("-A "):], builtin)
		case line == "COMMIT" && len(t.chains) > 0:
			out = append(out, t)
		case strings.HasPrefix(line, "# Table `") && strings.Contains(line, "incompatible"):
			name, _, _ := strings.Cut(strings.TrimPrefix(line, "# Table `"), "'")
			unread = append(unread, name)
		}
	}
	if err = sc.Err(); err != nil {
		err = fmt.Errorf("%s-save: %w", bin, err)
	}
	return out, unread, err
}

// add takes a rule in, if it jumps to a chain of kube-proxy. What jumps to a chain
// has nothing behind its name.
func (t *table) add(line string, builtin map[string]bool) {
	chain, spec, _ := strings.Cut(line, " ")
	i := strings.LastIndexByte(spec, ' ')
	if i < 0 || !ownChain(spec[i+1:]) {
		return
	}
	before := spec[:i]
	if before != "-j" && before != "-g" && !strings.HasSuffix(before, " -j") && !strings.HasSuffix(before, " -g") {
		return
	}
	r := rule{chain: chain, spec: spec, target: spec[i+1:]}
	switch {
	case builtin[chain]:
		t.jumps = append(t.jumps, r)
	case ownChain(chain):
		t.to[chain] = append(t.to[chain], r.target)
	default:
		t.foreign = append(t.foreign, r)
	}
}

// kept returns the chains that have to stay, with the rule that keeps each: those
// that the rules jump to, and what these jump to in turn.
func (t *table) kept(by []rule) map[string]rule {
	out := map[string]rule{}
	var keep func(chain string, r rule)
	keep = func(chain string, r rule) {
		if _, ok := out[chain]; ok {
			return
		}
		out[chain] = r
		for _, next := range t.to[chain] {
			keep(next, r)
		}
	}
	for _, r := range by {
		keep(r.target, r)
	}
	return out
}

// remove removes the jumps first: from then on no packet comes to the chains.
func (t *table) remove(ctx context.Context, told func(Object)) error {
	var errs []error
	stuck := slices.Clone(t.foreign)
	for _, f := range t.apply(ctx, len(t.jumps), func(i int) string { return "-D " + t.jumps[i].chain + " " + t.jumps[i].spec }) {
		for i := f.from; i < f.to; i++ {
			stuck = append(stuck, t.jumps[i])
			errs = append(errs, fmt.Errorf("rule %s (%s): %w", t.jumps[i], t.where(), f.err))
		}
	}
	for _, r := range t.jumps {
		if !slices.Contains(stuck, r) {
			told(Object{KindRule, t.where(), r.String()})
		}
	}
	kept := t.kept(stuck)
	var chains []string
	for _, c := range t.chains {
		if r, ok := kept[c]; ok {
			errs = append(errs, fmt.Errorf("chain %s (%s): the rule %q leads there, which is not kube-proxy's or stays: remove it and repeat", c, t.where(), r))
			continue
		}
		chains = append(chains, c)
	}
	failed := map[string]error{}
	for _, verb := range []string{"-F ", "-X "} { // they jump to each other: empty all first
		for _, f := range t.apply(ctx, len(chains), func(i int) string { return verb + chains[i] }) {
			for i := f.from; i < f.to; i++ {
				failed[chains[i]] = f.err
			}
		}
	}
	for _, c := range chains {
		if err := failed[c]; err != nil {
			errs = append(errs, fmt.Errorf("chain %s (%s): %w", c, t.where(), err))
			continue
		}
		told(Object{KindChain, t.where(), c})
	}
	return errors.Join(errs...)
}

// failure is a range of commands that could not be carried out.
type failure struct {
	from, to int
	err      error
}

// apply carries out n commands in one transaction. If that fails, halves of them
// are tried, so that in the end only those that fail by themselves are left out.
func (t *table) apply(ctx context.Context, n int, command func(i int) string) []failure {
	var out []failure
	var try func(from, to int)
	try = func(from, to int) {
		if from == to {
			return
		}
		var in strings.Builder
		fmt.Fprintf(&in, "*%s\n", t.name)
		for i := from; i < to; i++ {
			in.WriteString(command(i) + "\n")
		}
		in.WriteString("COMMIT\n")
		_, err := run(ctx, in.String(), t.bin+"-restore", "-w", lockWait, "-n")
		switch {
		case err == nil:
		case to-from == 1, len(out) >= maxFailures, ctx.Err() != nil:
			out = append(out, failure{from, to, err})
		default:
			mid := (from + to) / 2
			try(from, mid)
			try(mid, to)
		}
	}
	try(0, n)
	return out
}

func run(ctx context.Context, stdin, bin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, toolTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", bin, strings.Join(args, " "), err, strings.TrimSpace(errOut.String()))
	}
	return out.String(), nil
}
