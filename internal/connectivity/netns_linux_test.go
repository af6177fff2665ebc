// SPDX-License-Identifier: Apache-2.0

package connectivity_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/weft-net/weft/internal/connectivity"
)

// helperEnv makes the test binary a server or a probe inside a namespace: what
// it runs there is one process, as in a pod.
const helperEnv = "WEFT_CONNECTIVITY_HELPER"

func TestMain(m *testing.M) {
	switch os.Getenv(helperEnv) {
	case "serve":
		os.Exit(helperServe())
	case "probe":
		os.Exit(helperProbe())
	case "mtu":
		os.Exit(helperMTU())
	}
	os.Exit(m.Run())
}

type serveArgs struct {
	Addrs []netip.Addr
	Port  uint16
	Token string
}

func helperServe() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var a serveArgs
	if err := json.NewDecoder(os.Stdin).Decode(&a); err != nil {
		return fail(err)
	}
	t, err := connectivity.ParseToken(a.Token)
	if err != nil {
		return fail(err)
	}
	cfg := connectivity.ServeConfig{Addrs: a.Addrs, Port: a.Port, Token: t}
	if err := connectivity.Serve(ctx, cfg, func() { fmt.Println("ready") }); err != nil {
		return fail(err)
	}
	return 0
}

func helperProbe() int {
	var plan connectivity.ProbePlan
	if err := json.NewDecoder(os.Stdin).Decode(&plan); err != nil {
		return fail(err)
	}
	enc := json.NewEncoder(os.Stdout)
	if err := connectivity.Probe(context.Background(), &plan, func(r connectivity.Result) error { return enc.Encode(r) }); err != nil {
		return fail(err)
	}
	return 0
}

func fail(err error) int {
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// line is three namespaces in a row: a client, a router and a server, both
// families, every device with an MTU of 1500.
type line struct {
	t                      *testing.T
	client, router, server netns.NsHandle
}

func newLine(t *testing.T) *line {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	l := &line{t: t, client: newNS(t), router: newNS(t), server: newNS(t)}
	for _, h := range []netns.NsHandle{l.client, l.router, l.server} {
		// Otherwise nobody answers neighbour solicitations in the first 2 s.
		l.do(h, "sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0")
	}
	l.do(l.router, "ip link add c type veth peer name eth0 netns /proc/"+l.path(l.client))
	l.do(l.router, "ip link add s type veth peer name eth0 netns /proc/"+l.path(l.server))
	l.do(l.router, "ip addr add 10.77.1.1/24 dev c", "ip addr add 10.77.2.1/24 dev s",
		"ip addr add fd77:1::1/64 dev c nodad", "ip addr add fd77:2::1/64 dev s nodad", "ip link set c up", "ip link set s up",
		"sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
	l.do(l.client, "ip addr add 10.77.1.2/24 dev eth0", "ip addr add fd77:1::2/64 dev eth0 nodad", "ip link set eth0 up", "ip link set lo up",
		"ip route add default via 10.77.1.1", "ip route add default via fd77:1::1")
	l.do(l.server, "ip addr add 10.77.2.2/24 dev eth0", "ip addr add fd77:2::2/64 dev eth0 nodad", "ip link set eth0 up", "ip link set lo up",
		"ip route add default via 10.77.2.1", "ip route add default via fd77:2::1")
	return l
}

// newNS makes a namespace that goes when its last process and handle have gone.
func newNS(t *testing.T) netns.NsHandle {
	t.Helper()
	var h netns.NsHandle
	var err error
	onThread(func() { h, err = netns.New() })
	if err != nil {
		t.Skipf("cannot make a network namespace: %v", err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return h
}

// onThread runs f on a thread of its own, which ends with it.
func onThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread is in another namespace
		f()
	}()
	<-done
}

func (l *line) path(h netns.NsHandle) string { return fmt.Sprintf("%d/fd/%d", os.Getpid(), int(h)) }

// start starts a command inside the namespace.
func start(h netns.NsHandle, cmd *exec.Cmd) error {
	var err error
	onThread(func() {
		if err = netns.Set(h); err == nil {
			err = cmd.Start()
		}
	})
	return err
}

func (l *line) do(h netns.NsHandle, commands ...string) {
	l.t.Helper()
	for _, c := range commands {
		words := strings.Fields(c)
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		cmd := exec.CommandContext(ctx, words[0], words[1:]...)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		err := start(h, cmd)
		if err == nil {
			err = cmd.Wait()
		}
		if err != nil {
			l.t.Fatalf("%s: %v: %s", c, err, out.String())
		}
	}
}

const port = 4747

// testTimeout bounds one exchange.
const testTimeout = time.Second

// serve starts the echo server and waits until it listens.
func (l *line) serve(token connectivity.Token, addrs ...string) {
	l.t.Helper()
	a := serveArgs{Port: port, Token: token.String()}
	for _, s := range addrs {
		a.Addrs = append(a.Addrs, netip.MustParseAddr(s))
	}
	cmd := helper("serve", a)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	if err := start(l.server, cmd); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			l.t.Errorf("server: %v", err)
		}
	})
	if s, err := bufio.NewReader(out).ReadString('\n'); err != nil || s != "ready\n" {
		l.t.Fatalf("server did not start: %q %v", s, err)
	}
}

func helper(role string, in any) *exec.Cmd {
	b, err := json.Marshal(in)
	if err != nil {
		panic(err) // plain data
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), helperEnv+"="+role)
	cmd.Stdin = bytes.NewReader(b)
	return cmd
}

// probe runs the full matrix from client to server and returns what failed as
// "IPv4 UDP MTU" → error.
func (l *line) probe(token connectivity.Token) map[string]string {
	l.t.Helper()
	// Retried, because the machine may be too busy to answer in time: what is
	// broken stays so.
	return l.probeTimes(token, 1, connectivity.ProbePlan{Timeout: testTimeout, Retries: 2, Concurrency: 24})
}

// probeTimes runs the matrix so many times over in one plan.
func (l *line) probeTimes(token connectivity.Token, times int, plan connectivity.ProbePlan) map[string]string {
	l.t.Helper()
	for range times {
		addMatrix(&plan)
	}
	return l.probePlan(token, plan)
}

// probePlan runs the plan's cells.
func (l *line) probePlan(token connectivity.Token, plan connectivity.ProbePlan) map[string]string {
	l.t.Helper()
	plan.Token = token.String()
	cmd := helper("probe", plan)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := start(l.client, cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		l.t.Errorf("probe: %v: %s", err, errOut.String())
		return nil
	}
	failed := map[string]string{}
	seen := 0
	for dec := json.NewDecoder(&out); dec.More(); seen++ {
		var r connectivity.Result
		if err := dec.Decode(&r); err != nil {
			l.t.Error(err)
			return nil
		}
		if r.Error != "" {
			failed[plan.Cells[r.ID].Name()] = r.Error
		}
	}
	if seen != len(plan.Cells) {
		l.t.Errorf("%d results of %d cells", seen, len(plan.Cells))
	}
	return failed
}

func addMatrix(plan *connectivity.ProbePlan) {
	for _, f := range []connectivity.Family{connectivity.IPv4, connectivity.IPv6} {
		addr := netip.MustParseAddr("10.77.2.2")
		if f == connectivity.IPv6 {
			addr = netip.MustParseAddr("fd77:2::2")
		}
		for _, p := range []connectivity.Proto{connectivity.TCP, connectivity.UDP, connectivity.ICMP} {
			for _, s := range []connectivity.Size{connectivity.OneByte, connectivity.MTU, connectivity.MTUPlus1, connectivity.Max} {
				plan.Cells = append(plan.Cells, connectivity.Cell{ID: len(plan.Cells), Family: f, Proto: p, Size: s, Addr: addr, Port: port})
			}
		}
	}
}

// TestNoFalseLoss guards against a test that loses datagrams by itself: many
// probes at once, as on a cluster of several nodes, against one server.
func TestNoFalseLoss(t *testing.T) {
	l := newLine(t)
	token := connectivity.NewToken()
	l.serve(token, "10.77.2.2", "fd77:2::2")
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			for cell, err := range l.probeTimes(token, 6, connectivity.ProbePlan{Timeout: 15 * time.Second, Concurrency: 24}) {
				t.Errorf("%s: %s", cell, err)
			}
		})
	}
	wg.Wait()
}

// TestProbeAgainstServer guards against a matrix that fails on a sound path, and
// against probes that pass what does not work: each break must fail
// exactly the cells that it breaks.
func TestProbeAgainstServer(t *testing.T) {
	all := func(string) bool { return true }
	for _, tc := range []struct {
		name   string
		router []string // commands that break the path
		server []string
		broken func(cell string) bool
	}{
		{name: "sound", broken: func(string) bool { return false }},
		{name: "server unreachable", router: []string{"ip link set s down"}, broken: all},
		{
			name: "IPv6 only lost", router: []string{"sysctl -qw net.ipv6.conf.all.forwarding=0"},
			broken: func(c string) bool { return strings.HasPrefix(c, "IPv6") },
		},
		{
			name: "IPv4 only lost", router: []string{"sysctl -qw net.ipv4.ip_forward=0"},
			broken: func(c string) bool { return strings.HasPrefix(c, "IPv4") },
		},
		{
			name: "UDP only lost", router: []string{"nft add table inet t", "nft add chain inet t f { type filter hook forward priority 0 ; }", "nft add rule inet t f meta l4proto udp drop"},
			broken: func(c string) bool { return strings.Contains(c, "UDP") },
		},
		{
			name: "replies of ICMP lost", router: []string{
				"nft add table inet t", "nft add chain inet t f { type filter hook forward priority 0 ; }",
				"nft add rule inet t f icmp type echo-reply drop", "nft add rule inet t f icmpv6 type echo-reply drop",
			},
			broken: func(c string) bool { return strings.Contains(c, "ICMP") },
		},
		{
			name: "fragments lost", router: []string{
				"nft add table inet t", "nft add chain inet t f { type filter hook forward priority 0 ; }",
				"nft add rule inet t f ip frag-off & 0x3fff != 0 drop", "nft add rule inet t f exthdr frag exists drop",
			},
			broken: func(c string) bool {
				return !strings.Contains(c, "TCP") && (strings.HasSuffix(c, "MTU+1") || strings.HasSuffix(c, "64KB"))
			},
		},
		// TCP finds the narrower path by ICMP and goes on; fragments of IPv4 are
		// fragmented again by the router, those of IPv6 cannot be.
		{
			name: "narrow link", router: []string{"ip link set s mtu 1400"}, server: []string{"ip link set eth0 mtu 1400"},
			broken: func(c string) bool {
				switch {
				case strings.Contains(c, "TCP"), strings.HasSuffix(c, "1B"):
					return false
				case strings.HasPrefix(c, "IPv4"):
					return strings.HasSuffix(c, "MTU")
				}
				return true
			},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			l := newLine(t)
			token := connectivity.NewToken()
			l.serve(token, "10.77.2.2", "fd77:2::2")
			l.do(l.router, tc.router...)
			l.do(l.server, tc.server...)
			failed := l.probe(token)
			for _, c := range cellNames() {
				if _, did := failed[c]; did != tc.broken(c) {
					t.Errorf("%s: failed: %t (%s), want %t", c, did, failed[c], tc.broken(c))
				}
			}
		})
	}
}

func cellNames() []string {
	var out []string
	for _, f := range []string{"IPv4", "IPv6"} {
		for _, p := range []string{"TCP", "UDP", "ICMP"} {
			for _, s := range []string{"1B", "MTU", "MTU+1", "64KB"} {
				out = append(out, f+" "+p+" "+s)
			}
		}
	}
	return out
}

// TestNarrowLinkStaysFound guards against a second run that passes because the
// kernel has learned the path's MTU from the first.
func TestNarrowLinkStaysFound(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	token := connectivity.NewToken()
	l.serve(token, "10.77.2.2", "fd77:2::2")
	l.do(l.router, "ip link set s mtu 1400")
	for run := range 2 {
		failed := l.probe(token)
		for _, c := range []string{"IPv4 UDP MTU", "IPv6 UDP MTU", "IPv4 ICMP MTU", "IPv6 ICMP MTU"} {
			if failed[c] == "" {
				t.Errorf("run %d: %s passed over a link of MTU 1400", run, c)
			}
		}
	}
}

// TestTokenRequired guards against an open echo server on the node's addresses.
func TestTokenRequired(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	l.serve(connectivity.NewToken(), "10.77.2.2", "fd77:2::2")
	failed := l.probe(connectivity.NewToken())
	for _, c := range cellNames() {
		if !strings.Contains(c, "ICMP") && failed[c] == "" { // the kernel answers ICMP
			t.Errorf("%s was answered without the token", c)
		}
	}
}
