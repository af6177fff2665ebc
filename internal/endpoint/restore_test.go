// SPDX-License-Identifier: Apache-2.0

package endpoint_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/statedb"

	"github.com/weft-net/weft/internal/datapath/link"
	"github.com/weft-net/weft/internal/datapath/link/nstest"
	"github.com/weft-net/weft/internal/endpoint"
	"github.com/weft-net/weft/internal/ipam"
	"github.com/weft-net/weft/internal/table"
)

// A restart must find every pod as it was, keep their packets flowing, and not
// give their addresses, or those just released, to others.
func TestRestart(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		m := w.manager()
		a := w.add(m, "a", nstest.Netns(t))
		b := w.add(m, "b", nstest.Netns(t))
		w.del(m, "b")
		w.reap(m)
		c := w.add(m, "c", nstest.Netns(t))
		w.del(m, "c") // answered, but not reaped when the agent dies

		w.clock = w.clock.Add(5 * time.Second)
		m = w.manager()
		if list := m.List(); len(list) != 1 || list[0] != a {
			t.Errorf("list %+v, want %+v", list, a)
		}
		reach(t, a)
		if again := w.add(m, "a", a.Netns); again != a {
			t.Errorf("the runtime repeats an ADD: %+v", again)
		}
		w.reap(m)
		d := w.add(m, "d", nstest.Netns(t))
		for _, x := range []table.Endpoint{a, b, c} {
			if d.IPv4 == x.IPv4 || d.IPv6 == x.IPv6 || d.Generation <= x.Generation {
				t.Errorf("%+v is too much like %+v", d, x)
			}
		}
		w.del(m, "a")
		w.del(m, "d")
		w.reap(m)
	})
}

// A pod that was deleted while no agent ran, with its namespace, must go.
func TestRestartWithoutLink(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		m := w.manager()
		ep := w.add(m, "web", nstest.Netns(t))
		if err := exec.Command("ip", "link", "del", ep.HostIfName).Run(); err != nil {
			t.Fatal(err)
		}
		m = w.manager()
		if list := m.List(); len(list) != 0 {
			t.Errorf("list %v", list)
		}
		if used(m) != 1 {
			t.Error("the address is free before its conntrack entries are gone")
		}
		w.reap(m)
		if used(m) != 0 {
			t.Error("the address leaked")
		}
	})
}

// An ADD that was killed half-way leaves a link or a row that nobody owns.
func TestRestartClearsLeftovers(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		m := w.manager()
		ep := w.add(m, "web", nstest.Netns(t))
		if err := os.WriteFile(w.path(), []byte(`{"version":1,"endpoints":[]}`), 0o600); err != nil {
			t.Fatal(err)
		}
		m = w.manager()
		if rows, err := w.side.ListEndpoints(); err != nil || len(rows) != 0 {
			t.Errorf("rows %v, %v", rows, err)
		}
		w.reap(m)
		if left, err := w.links.List(); err != nil || len(left) != 0 {
			t.Errorf("links %v, %v", left, err)
		}
		// Its address may still stand in conntrack tables of others.
		if next := w.add(m, "next", nstest.Netns(t)); next.IPv4 == ep.IPv4 || next.Generation <= ep.Generation {
			t.Errorf("got %+v", next)
		}
		w.del(m, "next")
		w.reap(m)
	})
}

// A corrupt state file must cost nothing but a line in the log.
func TestCorruptState(t *testing.T) {
	for name, spoil := range map[string]func([]byte) []byte{
		"cut short":   func(b []byte) []byte { return b[:len(b)/2] },
		"empty":       func([]byte) []byte { return nil },
		"zeroes":      func(b []byte) []byte { return make([]byte, len(b)) },
		"of tomorrow": func([]byte) []byte { return []byte(`{"version":99}`) },
		"no link":     func(b []byte) []byte { return []byte(strings.ReplaceAll(string(b), "hostIfName", "x")) },
		"twice":       func(b []byte) []byte { return []byte(strings.ReplaceAll(string(b), `"id":3,`, `"id":1,`)) },
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, w *world) {
				m := w.manager()
				a := w.add(m, "a", nstest.Netns(t))
				w.add(m, "b", nstest.Netns(t))
				w.del(m, "b")
				w.reap(m)
				b := w.add(m, "b", nstest.Netns(t))
				whole, err := os.ReadFile(w.path())
				if err != nil {
					t.Fatal(err)
				}
				spoiled := spoil(whole)
				if string(spoiled) == string(whole) {
					t.Fatalf("the test does not know the format: %s", whole)
				}
				if err := os.WriteFile(w.path(), spoiled, 0o600); err != nil {
					t.Fatal(err)
				}
				w.clock = time.Now()
				m = w.manager()
				contains(t, text(w.logged()), "state file is corrupt", w.path(), "rebuilt", ".corrupt-")
				if aside, err := filepath.Glob(w.path() + ".corrupt-*"); err != nil || len(aside) != 1 {
					t.Errorf("moved aside: %v, %v", aside, err)
				}
				list := m.List()
				if len(list) != 2 {
					t.Fatalf("list %+v", list)
				}
				for i, want := range []table.Endpoint{a, b} {
					got := list[i]
					got.Netns, got.PodUID, got.CreatedAt = want.Netns, want.PodUID, want.CreatedAt // the kernel does not know them
					if got != want {
						t.Errorf("rebuilt %+v, want %+v", got, want)
					}
				}
				reach(t, a)
				// What was released just before is not known, so nothing is given for a while.
				_, err = m.Add(t.Context(), request("c", nstest.Netns(t)))
				if _, ok := errors.AsType[*ipam.HoldError](err); !ok {
					t.Errorf("an address is given though it may be one just released: %v", err)
				}
				if again := w.add(m, "a", a.Netns); again.IPv4 != a.IPv4 || again.Netns != a.Netns {
					t.Errorf("the runtime repeats an ADD: %+v", again)
				}
				w.clock = w.clock.Add(ipam.Rest)
				w.add(m, "c", nstest.Netns(t))
				for _, n := range []string{"a", "b", "c"} {
					w.del(m, n)
				}
				w.reap(m)
				if used(m) != 0 {
					t.Errorf("%d addresses in use", used(m))
				}
			})
		})
	}
}

// A DEL and an ADD of one attachment close together, then a restart: clearing up
// after the former must not hit the latter, whose link has the same name.
func TestRestartSparesSuccessor(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		m := w.manager()
		w.add(m, "web", nstest.Netns(t))
		w.del(m, "web")
		ep := w.add(m, "web", nstest.Netns(t))
		m = w.manager()
		if list := m.List(); len(list) != 1 || list[0] != ep {
			t.Errorf("list %+v", list)
		}
		w.reap(m)
		reach(t, ep)
		if err := m.Check(t.Context(), "c-web", "eth0", nil); err != nil {
			t.Error(err)
		}
		w.del(m, "web")
		w.reap(m)
	})
}

const victimEnv = "WEFT_ENDPOINT_VICTIM" // state directory, bpffs root, namespaces

// victim is a process that adds and deletes endpoints until it is killed.
func victim() int {
	args := strings.Split(os.Getenv(victimEnv), ",")
	r, err := openReal(args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	m, err := killable(args[0], r)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("ready")
	go func() { _ = m.Run(context.Background()) }()
	for i := 0; ; i++ {
		n := i % len(args[2:])
		name := fmt.Sprintf("v%d", n)
		if _, err := m.Add(context.Background(), request(name, args[2+n])); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		if i%3 != 0 {
			if err := m.Delete(context.Background(), "c-"+name, "eth0"); err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
		}
	}
}

func killable(dir string, r kernel) (*endpoint.Manager, error) {
	db := statedb.New()
	eps, err := table.NewEndpoints(db)
	if err != nil {
		return nil, err
	}
	l, err := link.New("", quiet())
	if err != nil {
		return nil, err
	}
	m, err := endpoint.New(endpoint.Params{
		Node: "n1", Links: l, Datapath: r, Rows: r, Log: quiet(),
		Settings: endpoint.Settings{Families: ipam.Families{V4: true, V6: true}, MTU: func() int { return 1400 }},
		State:    endpoint.State{Path: filepath.Join(dir, "endpoints.json"), DB: db, Endpoints: eps},
	})
	if err != nil {
		return nil, err
	}
	if err := m.Restore(context.Background()); err != nil {
		return nil, err
	}
	return m, m.SetRanges([]netip.Prefix{netip.MustParsePrefix("10.9.0.0/16"), netip.MustParsePrefix("fd09::/64")})
}

// The agent killed anywhere in an ADD or DEL: the next one must own everything
// that is in the kernel, no more and no less, and be able to go on.
func TestKilledAnywhere(t *testing.T) {
	nstest.Require(t)
	rounds, unit := 25, time.Millisecond
	if testing.Short() { // on a processor that is emulated, which takes longer for an ADD
		rounds, unit = 10, 10*time.Millisecond
	}
	root := filepath.Join(nstest.Mount(t, "bpf", ""), "weft")
	dir := nstest.Mount(t, "tmpfs", "size=1m")
	spaces := make([]string, 4)
	for i := range spaces {
		spaces[i] = nstest.Netns(t)
	}
	r, err := openReal(root)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	l, err := link.New("", quiet())
	if err != nil {
		t.Fatal(err)
	}
	defer l.DeleteAll()
	for i := range rounds {
		killOne(t, dir, root, spaces, time.Duration(i*i%31)*unit+time.Duration(i)*173*time.Microsecond)
		m, err := killable(dir, r)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Reap(context.Background()); err != nil {
			t.Fatal(err)
		}
		consistent(t, m, r, l)
		if i%5 == 4 { // and it can go on
			ep, err := m.Add(t.Context(), request("v0", spaces[0]))
			if err != nil {
				t.Fatal(err)
			}
			if err := m.Check(t.Context(), "c-v0", "eth0", []netip.Addr{ep.IPv4}); err != nil {
				t.Error(err)
			}
			if err := errors.Join(m.GC(t.Context(), nil), m.Reap(context.Background())); err != nil {
				t.Fatal(err)
			}
			consistent(t, m, r, l)
		}
		if t.Failed() {
			t.Fatalf("in round %d", i)
		}
	}
}

// consistent compares what the manager owns with what the kernel holds.
func consistent(t *testing.T, m *endpoint.Manager, r kernel, l *link.Links) {
	t.Helper()
	want := map[string]int{}
	ids := map[uint16]table.Endpoint{}
	for _, ep := range m.List() {
		want[ep.HostIfName] = ep.HostIfIndex
		ids[ep.ID] = ep
	}
	got, err := l.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range got {
		if want[k.Name] != k.Index {
			t.Errorf("link %s (%s) has no owner", k.Name, k.Alias)
		}
		delete(want, k.Name)
	}
	for name := range want {
		t.Errorf("link %s is missing", name)
	}
	rows, err := r.ListEndpoints()
	if err != nil || len(rows) != len(ids) {
		t.Errorf("%d rows of %d endpoints, %v", len(rows), len(ids), err)
	}
	for _, row := range rows {
		if ep := ids[row.ID]; ep.Generation != row.Generation || ep.HostIfIndex != row.HostIfIndex || ep.IPv4 != row.IPv4 {
			t.Errorf("row %+v of endpoint %+v", row, ep)
		}
	}
	cache, err := r.Maps().IPCache.List()
	if err != nil || len(cache) != 2*len(ids) {
		t.Errorf("ipcache has %v, %v, for %d endpoints", cache, err, len(ids))
	}
	if st := m.IPAM(); int(st.Ranges[0].Used) != len(ids) {
		t.Errorf("%d addresses of %d endpoints", st.Ranges[0].Used, len(ids))
	}
}

func killOne(t *testing.T, dir, root string, spaces []string, after time.Duration) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), victimEnv+"="+strings.Join(append([]string{dir, root}, spaces...), ","))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 16)); err != nil {
		t.Errorf("victim: %v", err)
	}
	time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != -1 {
		t.Fatalf("victim ended by itself: %v", err)
	}
}
