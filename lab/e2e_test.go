// SPDX-License-Identifier: Apache-2.0

// Package lab_test holds the end-to-end test of weft-lab. It needs root and
// what `weft-lab build` leaves, takes two minutes, and runs only on request:
//
//	WEFT_LAB_E2E=1 go test -count=1 -timeout 10m .
package lab_test

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	name     = "t1"
	other    = "t1-b"
	upLimit  = 5 * time.Minute
	runLimit = time.Minute
)

// tool is the weft-lab under test.
type tool struct{ bin string }

func build(t *testing.T) *tool {
	t.Helper()
	if os.Getenv("WEFT_LAB_E2E") != "1" {
		t.Skip("brings up clusters: set WEFT_LAB_E2E=1 to run it")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	bin := filepath.Join(t.TempDir(), "weft-lab")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", bin, "./cmd/weft-lab")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	x := &tool{bin: bin}
	for _, n := range []string{name, other} {
		if left := machine(t, n); left != "" {
			t.Fatalf("a lab %s is there already: take it down first\n%s", n, left)
		}
		t.Cleanup(func() {
			if out, err := x.try(runLimit, "--name", n, "down"); err != nil {
				t.Errorf("down: %v\n%s", err, out)
			}
		})
	}
	return x
}

// try runs weft-lab and returns all that it said.
func (x *tool) try(limit time.Duration, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, x.bin, args...)
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (x *tool) must(t *testing.T, limit time.Duration, args ...string) string {
	t.Helper()
	out, err := x.try(limit, args...)
	if err != nil {
		t.Fatalf("weft-lab %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// machine is all that a lab of this name has on the machine: namespaces,
// groups, mounts, processes, files. It is empty before up and after down.
func machine(t *testing.T, lab string) string {
	t.Helper()
	var found []string
	add := func(what, v string) { found = append(found, what+" "+v) }
	namespaces, _ := filepath.Glob("/run/netns/" + lab + "-*")
	for _, n := range namespaces {
		if lab == name && strings.HasPrefix(filepath.Base(n), other+"-") {
			continue
		}
		add("netns", n)
	}
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && d.Name() == "weft-lab-"+lab {
			add("cgroup", path)
			return fs.SkipDir
		}
		return nil
	})
	state := "/var/lib/weft-lab/" + lab
	for _, path := range []string{state, state + ".lock"} {
		if _, err := os.Lstat(path); err == nil {
			add("file", path)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, state+"/") {
			add("mount", strings.TrimSpace(line))
		}
	}
	processes, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range processes {
		b, _ := os.ReadFile(p)
		if bytes.Contains(b, []byte(state+"/")) {
			add("process", p+" "+strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	slices.Sort(found)
	return strings.Join(found, "\n")
}

// shared is what belongs to the machine and no lab may change: devices, routes
// and rules of its own network namespace, and settings.
func shared(t *testing.T) string {
	t.Helper()
	const script = `ip -o link | sed 's/ state .*//'; ip -o addr | grep -v temporary | sed 's/ valid_lft.*//'; ip route; ip -6 route | sed 's/ expires [^ ]*//'; nft list ruleset
cat /proc/sys/vm/overcommit_memory /proc/sys/vm/panic_on_oom /proc/sys/kernel/panic /proc/sys/kernel/panic_on_oops
cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding /proc/sys/kernel/hostname; hostname
ls /etc/cni /opt/cni /var/lib/kubelet /var/lib/containerd /var/log/pods /sys/fs/bpf 2>&1`
	out, _ := exec.CommandContext(t.Context(), "sh", "-c", script).Output() // ls fails for what is not there
	return string(out)
}

func same(t *testing.T, when, before string) {
	t.Helper()
	if now := shared(t); now != before {
		t.Errorf("%s the machine differs.\nbefore:\n%s\nnow:\n%s", when, before, now)
	}
	if left := machine(t, name); left != "" {
		t.Errorf("%s of lab %s is left:\n%s", when, name, left)
	}
}

const probe = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: probe}
spec:
  selector: {matchLabels: {app: probe}}
  template:
    metadata: {labels: {app: probe}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: c
        image: registry.k8s.io/e2e-test-images/agnhost:2.63.0
        args: [netexec, --http-port=8080]
        readinessProbe: {httpGet: {path: /hostname, port: 8080}, periodSeconds: 1}
`

// pods maps nodes to the names and addresses of the probe's pods.
type pod struct{ name, v4, v6 string }

func (x *tool) pods(t *testing.T) map[string]pod {
	t.Helper()
	file := filepath.Join(t.TempDir(), "probe.yaml")
	if err := os.WriteFile(file, []byte(probe), 0o600); err != nil {
		t.Fatal(err)
	}
	x.must(t, runLimit, "--name", name, "kubectl", "apply", "-f", file)
	x.must(t, 2*time.Minute, "--name", name, "kubectl", "rollout", "status", "ds/probe", "--timeout=100s")
	out := x.must(t, runLimit, "--name", name, "kubectl", "get", "pods", "-l", "app=probe",
		"-o", "jsonpath={range .items[*]}{.spec.nodeName} {.metadata.name} {.status.podIPs[*].ip}{\"\\n\"}{end}")
	pods := map[string]pod{}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) == 4 {
			pods[f[0]] = pod{f[1], f[2], f[3]}
		}
	}
	return pods
}

func (x *tool) reach(from, to pod, v6 bool) error {
	url := "http://" + to.v4 + ":8080/hostname"
	if v6 {
		url = "http://[" + to.v6 + "]:8080/hostname"
	}
	out, err := x.try(runLimit, "--name", name, "kubectl", "exec", from.name, "--", "curl", "-sS", "-m2", url)
	if err != nil {
		return fmt.Errorf("%s to %s: %w: %s", from.name, url, err, out)
	}
	if out != to.name {
		return fmt.Errorf("%s to %s: answered %q, want %q", from.name, url, out, to.name)
	}
	return nil
}

// fastest is the least round trip of ping's summary, in milliseconds.
func fastest(t *testing.T, out string) float64 {
	t.Helper()
	_, figures, _ := strings.Cut(out, "min/avg/max/mdev = ")
	first, _, _ := strings.Cut(figures, "/")
	ms, err := strconv.ParseFloat(first, 64)
	if err != nil {
		t.Errorf("ping: no summary in %s", out)
	}
	return ms
}

// Guards against a lab in which pods do not talk, cuts that do not cut or take
// too much, labs that disturb one another, and down that leaves something.
func TestLab(t *testing.T) {
	x := build(t)
	before := shared(t)
	x.must(t, upLimit, "--name", name, "up", "--nodes", "2", "--cni", "ptp")
	if out, err := x.try(runLimit, "--name", name, "up"); err == nil || !strings.Contains(out, "exists") {
		t.Errorf("a second up of the same lab: %v\n%s", err, out)
	}
	pods := x.pods(t)
	a, b := pods["n1"], pods["n2"]
	if a.v6 == "" || b.v6 == "" {
		t.Fatalf("pods %v: want one with two addresses on n1 and on n2", pods)
	}
	expect := func(when string, wanted bool) {
		t.Helper()
		for _, v6 := range []bool{false, true} {
			for _, way := range [][2]pod{{a, b}, {b, a}} {
				if err := x.reach(way[0], way[1], v6); (err == nil) != wanted {
					t.Errorf("%s: reachable should be %t: %v", when, wanted, err)
				}
			}
		}
	}
	expect("at first", true)
	x.must(t, runLimit, "--name", name, "cut", "n1", "n2")
	expect("cut", false)
	x.must(t, runLimit, "--name", name, "heal", "n2", "n1")
	expect("healed", true)
	x.must(t, runLimit, "--name", name, "cut", "n1", "n2", "--proto", "tcp", "--port", "8080")
	expect("port cut", false)
	x.must(t, runLimit, "--name", name, "exec", "n1", "--", "ping", "-c1", "-W2", b.v4)
	x.must(t, runLimit, "--name", name, "heal")
	x.must(t, runLimit, "--name", name, "link", "n2", "--delay", "30ms")
	expect("delayed", true)
	out := x.must(t, runLimit, "--name", name, "exec", "client", "--", "ping", "-c10", "-i0.1", "-q", "172.18.1.12")
	if rtt := fastest(t, out); rtt < 60 || rtt > 200 {
		t.Errorf("round trip over a link with 30 ms each way takes %g ms: %s", rtt, out)
	}

	x.must(t, upLimit, "--name", other, "up", "--nodes", "1", "--cni", "none", "--dns=false")
	expect("beside another lab", true)
	x.must(t, runLimit, "--name", other, "down")
	if left := machine(t, other); left != "" {
		t.Errorf("of lab %s is left:\n%s", other, left)
	}
	expect("after another lab", true)

	leave := exec.CommandContext(t.Context(), x.bin, "--name", name, "exec", "client", "--", "sleep", "600")
	if err := leave.Start(); err != nil {
		t.Fatal(err)
	}
	x.must(t, runLimit, "--name", name, "down")
	_ = leave.Wait() // down ended it
	x.must(t, runLimit, "--name", name, "down")
	same(t, "after down", before)
}

// Guards against anything that an interrupted up leaves behind, wherever it
// was: it is killed without warning after ever longer times.
func TestDownAfterKilledUp(t *testing.T) {
	x := build(t)
	before := shared(t)
	for _, ms := range []int{5, 15, 30, 60, 120, 300, 1000, 3000, 7000, 12000} {
		after := time.Duration(ms) * time.Millisecond
		cmd := exec.CommandContext(t.Context(), x.bin, "--name", name, "up", "--nodes", "2")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		kill := time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		kill.Stop()
		x.must(t, runLimit, "--name", name, "down")
		same(t, fmt.Sprintf("up killed after %s, then down:", after), before)
	}
}

// Guards against a host whose PID 1 or network namespace is gone keeping down
// from its work, and against failures of up that do not name the culprit.
func TestDownOfBrokenLab(t *testing.T) {
	x := build(t)
	before := shared(t)
	x.must(t, upLimit, "--name", name, "up", "--nodes", "2", "--cni", "none", "--dns=false")
	const broken = `for p in $(cat /sys/fs/cgroup/unified/weft-lab-t1/n1/cgroup.procs /sys/fs/cgroup/weft-lab-t1/n1/system/cgroup.procs 2>/dev/null); do kill -KILL $p; done
umount -l /run/netns/t1-n2; rm /run/netns/t1-n2; truncate -s 0 /var/lib/weft-lab/t1/lab.json`
	if out, err := exec.CommandContext(t.Context(), "sh", "-c", broken).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err := x.try(runLimit, "--name", name, "status"); err == nil || !strings.Contains(out, "weft-lab down --name t1") {
		t.Errorf("status of a lab without a record: %v\n%s", err, out)
	}
	x.must(t, runLimit, "--name", name, "down")
	same(t, "after down", before)
}
