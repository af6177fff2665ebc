// SPDX-License-Identifier: Apache-2.0

// Package build makes all that a lab runs: it compiles Kubernetes, etcd,
// containerd and CoreDNS from their Go modules, fetches runc and the reference
// CNI plugins from Debian, and packs the images. Results are kept in a cache,
// each component under a key of all its inputs.
package build

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
)

// KubernetesVersion is the release that build/k8s/go.mod names. kubectl and
// the end-to-end tests refuse to work without a version they can parse.
const KubernetesVersion = "v1.36.3"

// component is a unit of the build and of the cache.
type component struct {
	name    string
	module  string   // folder under lab/build
	tags    string   // go build -tags
	ldflags string   // go build -ldflags
	pkgs    []string // main packages; the file name of each is the last element of its path
	rename  map[string]string
	test    string   // a package whose test binary is wanted, as <last element>.test
	debs    []string // Debian packages to unpack instead of compiling
	cost    string   // cold, on two cores
}

func versionFlags() string {
	const pkg = "k8s.io/component-base/version"
	parts := strings.SplitN(strings.TrimPrefix(KubernetesVersion, "v"), ".", 3)
	return fmt.Sprintf("-X %s.gitVersion=%s -X %s.gitMajor=%s -X %s.gitMinor=%s -X %s.gitTreeState=clean",
		pkg, KubernetesVersion, pkg, parts[0], pkg, parts[1], pkg)
}

// components lists what `weft-lab build` makes, the longest first.
func components(withE2E bool) []component {
	kube := "k8s.io/kubernetes/cmd/"
	ctrd := "github.com/containerd/containerd/v2/cmd/"
	list := []component{
		{
			name: "kubernetes", module: "k8s", ldflags: versionFlags(), cost: "5 min",
			pkgs: []string{kube + "kubelet", kube + "kube-apiserver", kube + "kube-controller-manager", kube + "kube-scheduler", kube + "kube-proxy", kube + "kubectl"},
		},
		{
			name: "containerd", module: "containerd", tags: "no_btrfs no_devmapper no_zfs", cost: "45 s",
			pkgs: []string{ctrd + "containerd", ctrd + "containerd-shim-runc-v2", ctrd + "ctr"},
		},
		{name: "coredns", module: "coredns", ldflags: "-s -w", cost: "45 s", pkgs: []string{"."}},
		{name: "etcd", module: "etcd", cost: "25 s", pkgs: []string{"go.etcd.io/etcd/server/v3"}, rename: map[string]string{"server": "etcd"}},
		{name: "agnhost", module: "e2e", cost: "30 s", pkgs: []string{"k8s.io/kubernetes/test/images/agnhost"}},
		{name: "pause", module: "pause", ldflags: "-s -w", cost: "1 s", pkgs: []string{"."}},
		{name: "debian", cost: "5 s", debs: []string{"runc", "containernetworking-plugins", "busybox-static"}},
	}
	if withE2E {
		list = append(list, component{
			name: "e2e", module: "e2e", ldflags: versionFlags(), cost: "2 min",
			pkgs: []string{"github.com/onsi/ginkgo/v2/ginkgo"}, test: "k8s.io/kubernetes/test/e2e",
		})
	}
	return list
}

// key digests everything that decides what the component becomes. Debian
// packages are keyed by name only: the machine's archive decides the version.
func (c component) key(source, goVersion string) (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, "1", c.name, c.tags, c.ldflags, c.pkgs, c.test, c.debs, runtime.GOARCH)
	if c.module == "" {
		return digest(h), nil
	}
	fmt.Fprintln(h, goVersion)
	return digestTree(h, filepath.Join(source, c.module))
}

func digest(h interface{ Sum([]byte) []byte }) string {
	return hex.EncodeToString(h.Sum(nil))[:16]
}

func digestTree(h interface {
	io.Writer
	Sum([]byte) []byte
}, dir string,
) (string, error) {
	var files []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		return "", fmt.Errorf("build module %s: %w", dir, err)
	}
	sort.Strings(files)
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return "", fmt.Errorf("build module %s: %w", dir, err)
		}
		rel, _ := filepath.Rel(dir, f)
		fmt.Fprintln(h, rel, len(b))
		_, _ = h.Write(b) // a hash takes everything
	}
	return digest(h), nil
}
