// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// commands are what tests and kernel execute.
func commands() []string {
	return []string{
		"bash", "cat", "conntrack", "dd", "ethtool", "ip", "modprobe", "nft", "nsenter", "ping", "sleep", "sysctl", "tc", "true",
		"iptables", "ip6tables", "iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy",
		"iptables-restore", "ip6tables-restore", "iptables-nft-restore", "ip6tables-nft-restore",
		"iptables-legacy-restore", "ip6tables-legacy-restore",
	}
}

// moduleDirs are the parts of a kernel's modules that a network may need.
func moduleDirs() []string {
	return []string{"net", "lib", "crypto", "arch/x86/crypto", "drivers/net/*.ko*", "drivers/net/vxlan*"}
}

// initrd is the file system that a machine boots into, kept in its memory.
type initrd struct {
	files map[string]string // place there → file here
	data  map[string][]byte
}

// newInitrd collects this program as init, tests, commands and a kernel's modules.
func newInitrd(ctx context.Context, im image, tests []string, plan []byte) (*initrd, error) {
	r := &initrd{files: map[string]string{}, data: map[string][]byte{
		"/plan.json":     plan,
		"/etc/passwd":    []byte("root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
		"/etc/group":     []byte("root:x:0:\nnogroup:x:65534:\n"),
		"/etc/protocols": []byte("icmp 1 ICMP\ntcp 6 TCP\nudp 17 UDP\nipv6-icmp 58 IPv6-ICMP\nsctp 132 SCTP\n"),
		"/etc/hosts":     []byte("127.0.0.1 localhost\n::1 localhost\n"),
	}}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	r.files["/init"] = self
	for _, t := range tests {
		r.files["/tests/"+filepath.Base(t)] = t
	}
	// Some tests compare Go with C and with what is documented, or read programs
	// of other releases.
	for _, dir := range []string{"bpf", "docs", "internal/datapath/testdata", "install/helm/weft/crds"} {
		if err := r.addTree(dir, "/src/"+dir); err != nil {
			return nil, err
		}
	}
	if err := r.addCommands(ctx); err != nil {
		return nil, err
	}
	r.addKubernetes()
	return r, r.addModules(im)
}

// kubernetes is where a machine has the programs that tests of the agent need.
const kubernetes = "/usr/lib/kubernetes"

// addKubernetes takes what the lab has compiled, or what the tests would take
// here. Without it they skip, and say so.
func (r *initrd) addKubernetes() {
	dirs := []string{os.Getenv("WEFT_TEST_KUBE_BIN")}
	if cache, err := os.UserCacheDir(); err == nil {
		dirs = append(dirs, filepath.Join(cache, "weft-lab", "bin", "*"))
	}
	for _, name := range []string{"kube-apiserver", "etcd"} {
		for _, dir := range dirs {
			found, err := filepath.Glob(filepath.Join(dir, name))
			if dir != "" && err == nil && len(found) > 0 {
				r.files[kubernetes+"/"+name] = found[0]
				break
			}
		}
	}
}

// addCommands takes the machine's own, with the libraries that they are linked with.
func (r *initrd) addCommands(ctx context.Context) error {
	for _, name := range commands() {
		file, err := exec.LookPath(name)
		if err != nil {
			return fmt.Errorf("%w: run `make deps`", err)
		}
		r.files["/usr/sbin/"+name] = file
		if err := r.addLibraries(ctx, file); err != nil {
			return err
		}
	}
	// iptables opens these by itself.
	plugins, err := filepath.Glob("/usr/lib/*/xtables/*.so")
	if err != nil || len(plugins) == 0 {
		return fmt.Errorf("no extensions of iptables under /usr/lib: %w", fs.ErrNotExist)
	}
	for _, p := range plugins {
		r.files[p] = p
	}
	return nil
}

func (r *initrd) addLibraries(ctx context.Context, file string) error {
	out, err := output(ctx, "", "ldd", file)
	if err != nil {
		return err
	}
	for line := range strings.Lines(out) {
		for word := range strings.FieldsSeq(line) {
			if filepath.IsAbs(word) {
				r.files[word] = word
			}
		}
	}
	return nil
}

func (r *initrd) addModules(im image) error {
	there := "/lib/modules/" + im.release + "/"
	index, err := filepath.Glob(filepath.Join(im.modules(), "modules.*"))
	if err != nil {
		return err
	}
	for _, f := range index {
		r.files[there+filepath.Base(f)] = f
	}
	for _, pattern := range moduleDirs() {
		found, err := filepath.Glob(filepath.Join(im.modules(), "kernel", pattern))
		if err != nil {
			return err
		}
		for _, root := range found {
			if err := r.addTree(root, there+strings.TrimPrefix(root, im.modules()+"/")); err != nil {
				return err
			}
		}
	}
	return nil
}

// addTree takes a file, or a folder with all in it.
func (r *initrd) addTree(root, there string) error {
	return filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			r.files[there+strings.TrimPrefix(p, root)] = p
		}
		return err
	})
}

// write makes the archive, as the kernel's
// Documentation/driver-api/early-userspace/buffer-format.rst has it ("newc").
func (r *initrd) write(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	c := &cpio{w: bufio.NewWriterSize(f, 1<<20), dirs: map[string]bool{"/": true}}
	for _, d := range []string{"/dev", "/proc", "/sys", "/run", "/tmp", "/root", "/etc", "/var/run"} {
		c.dir(d)
	}
	c.entry("/dev/console", charDevice|0o600, 5, 1, nil)
	places := make([]string, 0, len(r.files)+len(r.data))
	for p := range r.files {
		places = append(places, p)
	}
	for p := range r.data {
		places = append(places, p)
	}
	slices.Sort(places)
	for _, p := range places {
		data, ok := r.data[p]
		if !ok {
			if data, err = os.ReadFile(r.files[p]); err != nil {
				return err
			}
		}
		c.dir(filepath.Dir(p))
		c.entry(p, regular|0o755, 0, 0, data)
	}
	c.entry("TRAILER!!!", 0, 0, 0, nil)
	return c.w.Flush() // of bufio: the first error of all writes
}

// Kinds of files, as in inode(7).
const (
	charDevice = 0o020000
	directory  = 0o040000
	regular    = 0o100000
)

type cpio struct {
	w    *bufio.Writer
	ino  int
	dirs map[string]bool
}

func (c *cpio) dir(name string) {
	if c.dirs[name] {
		return
	}
	c.dir(filepath.Dir(name))
	c.dirs[name] = true
	c.entry(name, directory|0o755, 0, 0, nil)
}

func (c *cpio) entry(name string, mode, major, minor int, data []byte) {
	c.ino++
	name = strings.TrimPrefix(name, "/")
	header := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		c.ino, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name)+1, 0)
	_, _ = io.WriteString(c.w, header+name+"\x00")
	c.pad(len(header) + len(name) + 1)
	_, _ = c.w.Write(data)
	c.pad(len(data))
}

func (c *cpio) pad(n int) {
	_, _ = c.w.Write(make([]byte, (4-n%4)%4))
}
