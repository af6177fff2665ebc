// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/datapath"
	"github.com/weft-net/weft/internal/datapath/maps"
)

// inside marks the process that runs in namespaces of its own.
const inside = "WEFT_TEST_INSIDE"

// TestMain runs the tests in a new mount and network namespace, so that
// nothing they make outlives them, however they end. Not root: every test that
// needs the kernel skips. Workers of a fuzz test get a namespace each.
func TestMain(m *testing.M) {
	role := "tests"
	var files []*os.File
	if slices.Contains(os.Args[1:], "-test.fuzzworker") {
		role = "worker"
		for fd := range 3 { // what the coordinator talks through
			files = append(files, os.NewFile(uintptr(3+fd), "fuzz"))
		}
	}
	if os.Geteuid() != 0 {
		os.Exit(m.Run())
	}
	if os.Getenv(inside) == role {
		if err := prepare(); err != nil {
			fmt.Fprintln(os.Stderr, "prepare namespace:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"="+role)
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = os.Stdin, os.Stdout, os.Stderr, files
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // Pdeathsig follows the thread
	err := cmd.Run()
	if ee, ok := errors.AsType[*exec.ExitError](err); ok {
		os.Exit(ee.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "run in a namespace:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

const bpffs = "/sys/fs/bpf"

func prepare() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	for _, m := range []struct{ at, fs string }{{"/sys", "sysfs"}, {bpffs, "bpf"}, {"/run/netns", "tmpfs"}} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.fs, m.at, m.fs, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getenv(inside) == "" {
		t.Skip("needs root: loads BPF programs in a namespace of its own")
	}
}

var testSizes = maps.Sizes{CT: 4096, CTNew: 1024, Fragments: 1024, NAT: 4096, NATNew: 1024, NATClient: 1024, LBConnNew: 1024, IPCache: 1024, Networks: 1024, Events: 1 << 16}

// open opens a datapath on a root of its own.
func open(t testing.TB, o datapath.Options) *datapath.Datapath {
	t.Helper()
	needRoot(t)
	if o.Root == "" {
		o.Root = newRoot(t)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	if o.Sizes == (maps.Sizes{}) {
		o.Sizes = testSizes
	}
	d, err := datapath.Open(o.Untested())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func newRoot(t testing.TB) string {
	t.Helper()
	needRoot(t)
	root := filepath.Join(bpffs, fmt.Sprintf("t%d-%x", os.Getpid(), len(t.Name())), filepath.Base(t.TempDir()))
	t.Cleanup(func() {
		if err := datapath.Unload(root); err != nil {
			t.Error(err)
		}
	})
	return root
}

// newVeth makes a device pair and returns the near end.
func newVeth(t testing.TB, name string) netlink.Link {
	t.Helper()
	needRoot(t)
	if old, err := netlink.LinkByName(name); err == nil { // of an earlier node of the same test
		if err := netlink.LinkDel(old); err != nil {
			t.Fatal(err)
		}
	}
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, HardwareAddr: mac}, PeerName: "p" + name})
	if err != nil {
		t.Fatalf("veth %s: %v", name, err)
	}
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(l) })
	for _, n := range []string{name, "p" + name} {
		end, err := netlink.LinkByName(n)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetUp(end); err != nil {
			t.Fatal(err)
		}
	}
	return l
}
