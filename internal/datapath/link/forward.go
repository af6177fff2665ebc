// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// ForwardChain is the iptables chain that accepts what pods send and receive,
// and what is sent on for services. Docker and firewalld drop in FORWARD what nobody accepts.
const ForwardChain = "WEFT-FORWARD"

const (
	iptablesTimeout = 20 * time.Second
	// lockWait is how long iptables waits for its lock, in seconds.
	lockWait = "10"
)

// Forwarded says what FORWARD is to accept.
type Forwarded struct {
	IPv4, IPv6 bool // of which families: what pods send and receive
	Services   bool // what clients outside and backends on other nodes send each other through this node
}

// Marks of packets for services: MARK_SERVICE and MARK_REFUSE in bpf/lib/types.h.
const (
	serviceMark = 0x5EF70002
	refuseMark  = 0x5EF70003
)

// rules are written as iptables lists them.
func (f Forwarded) rules(icmp string) []string {
	pods := []string{
		"-i " + HostPrefix + "+ -j ACCEPT",
		"-o " + HostPrefix + "+ -j ACCEPT",
	}
	if !f.Services {
		return pods
	}
	return append([]string{
		fmt.Sprintf("-p tcp -m mark --mark %#x -j REJECT --reject-with tcp-reset", uint32(refuseMark)),
		fmt.Sprintf("-m mark --mark %#x -j REJECT --reject-with %s-port-unreachable", uint32(refuseMark), icmp),
		fmt.Sprintf("-m mark --mark %#x -j ACCEPT", uint32(serviceMark)),
	}, pods...)
}

// backend is one implementation of iptables for one family.
type backend struct {
	bin    string // iptables-nft
	icmp   string // what its rules call ICMP
	legacy bool
}

// backends returns those that decide about packets here: nft always, the legacy
// one when its filter table is loaded, which the kernel tells in proc. Asking
// the legacy binary would load it.
func (l *Links) backends(v4, v6 bool) []backend {
	var out []backend
	for _, f := range []struct {
		on               bool
		bin, icmp, names string
	}{{v4, "iptables", "icmp", "ip_tables_names"}, {v6, "ip6tables", "icmp6", "ip6_tables_names"}} {
		if !f.on {
			continue
		}
		out = append(out, backend{bin: f.bin + "-nft", icmp: f.icmp})
		if b, err := os.ReadFile("/proc/thread-self/net/" + f.names); err == nil && slices.Contains(strings.Fields(string(b)), "filter") {
			out = append(out, backend{bin: f.bin + "-legacy", icmp: f.icmp, legacy: true})
		}
	}
	return out
}

// EnsureForward makes FORWARD accept packets in every backend in use. It is idempotent. The jump stands first in FORWARD, save for
// kube-proxy's own: those reject packets to services without endpoints, which an
// accept before them would send into the void.
//
// If binaries are missing, the rest is done nevertheless and *MissingError
// says so: where nothing drops in FORWARD, nothing is missing.
func (l *Links) EnsureForward(ctx context.Context, f Forwarded) error {
	return eachBackend(l.backends(f.IPv4, f.IPv6), func(b backend) error { return b.ensure(ctx, f.rules(b.icmp)) })
}

// RemoveForward takes back what EnsureForward did.
func (l *Links) RemoveForward(ctx context.Context) error {
	return eachBackend(l.backends(true, true), func(b backend) error { return b.remove(ctx) })
}

// MissingError names iptables binaries that are not installed.
type MissingError struct{ Binaries []string }

func (e *MissingError) Error() string {
	return fmt.Sprintf("%s: not found: pods' packets are not accepted in FORWARD; install iptables on the node or in the image, "+
		"unless nothing on the node drops forwarded packets", strings.Join(e.Binaries, ", "))
}

func eachBackend(bs []backend, f func(backend) error) error {
	var missing MissingError
	var errs []error
	for _, b := range bs {
		if _, err := exec.LookPath(b.bin); err != nil {
			missing.Binaries = append(missing.Binaries, b.bin)
			continue
		}
		errs = append(errs, f(b))
	}
	if len(missing.Binaries) > 0 {
		errs = append(errs, &missing)
	}
	return errors.Join(errs...)
}

func (b backend) run(ctx context.Context, stdin, bin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, iptablesTimeout)
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

// forward lists the rules of FORWARD in their order, without the policy, and
// those of our chain.
func (b backend) forward(ctx context.Context) (rules, own []string, err error) {
	out, err := b.run(ctx, "", b.bin, "-w", lockWait, "-t", "filter", "-S")
	if err != nil {
		return nil, nil, err
	}
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		if r, ok := strings.CutPrefix(line, "-A FORWARD "); ok {
			rules = append(rules, r)
		}
		if r, ok := strings.CutPrefix(line, "-A "+ForwardChain+" "); ok {
			own = append(own, r)
		}
	}
	return rules, own, nil
}

const jump = "-j " + ForwardChain

func (b backend) ensure(ctx context.Context, accepted []string) error {
	rules, own, err := b.forward(ctx)
	if err != nil {
		return err
	}
	want := slices.IndexFunc(rules, func(r string) bool { return r != jump && !strings.Contains(r, "-j KUBE-") })
	if want < 0 {
		want = len(rules)
	}
	at := slices.Index(rules, jump)
	if slices.Equal(own, accepted) && at >= 0 && at < want && slices.Index(rules[at+1:], jump) < 0 {
		return nil
	}
	var in strings.Builder
	fmt.Fprintf(&in, "*filter\n:%s - [0:0]\n", ForwardChain)
	for _, r := range accepted {
		fmt.Fprintf(&in, "-A %s %s\n", ForwardChain, r)
	}
	// Rules are inserted before old ones go: there is no moment without one.
	fmt.Fprintf(&in, "-I FORWARD %d %s\n", want+1, jump)
	in.WriteString(b.deletes(rules, want))
	in.WriteString("COMMIT\n")
	_, err = b.run(ctx, in.String(), b.bin+"-restore", "-w", lockWait, "-n")
	return err
}

// deletes removes the jumps among rules by number, once a new one has been
// inserted before rules[inserted].
func (b backend) deletes(rules []string, inserted int) string {
	var s strings.Builder
	for i, rule := range slices.Backward(rules) {
		if rule != jump {
			continue
		}
		n := i + 1
		if i >= inserted {
			n++
		}
		fmt.Fprintf(&s, "-D FORWARD %d\n", n)
	}
	return s.String()
}

func (b backend) remove(ctx context.Context) error {
	out, err := b.run(ctx, "", b.bin, "-w", lockWait, "-t", "filter", "-S")
	if err != nil {
		return err
	}
	if !strings.Contains(out, "-N "+ForwardChain+"\n") {
		return nil
	}
	var in strings.Builder
	in.WriteString("*filter\n")
	for range strings.Count(out, "-A FORWARD "+jump+"\n") {
		fmt.Fprintf(&in, "-D FORWARD %s\n", jump)
	}
	fmt.Fprintf(&in, "-F %s\n-X %s\nCOMMIT\n", ForwardChain, ForwardChain)
	_, err = b.run(ctx, in.String(), b.bin+"-restore", "-w", lockWait, "-n")
	return err
}
