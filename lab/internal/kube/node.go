// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/weft-net/weft/lab/internal/build"
	"github.com/weft-net/weft/lab/internal/host"
	"github.com/weft-net/weft/lab/internal/plan"
)

// MaxPods of a node.
const MaxPods = 120

const containerdSocket = "/run/containerd/containerd.sock"

// NodePrograms are the programs of a node.
func (c *Cluster) NodePrograms(n plan.Host) []host.Program {
	containerd := c.Cache.Bin("containerd", "containerd")
	list := []host.Program{
		{
			Name: "containerd", Argv: []string{containerd, "--config", "/etc/weft-lab/containerd.toml"},
			Env: []string{"PATH=" + filepath.Dir(containerd) + ":" + host.Path, "HOME=/root"},
		}, // its shim is found by PATH
		{Name: "kubelet", After: containerdSocket, Env: environ(), Argv: []string{
			c.Cache.Bin("kubernetes", "kubelet"), "--config=/etc/weft-lab/kubelet.json",
			"--kubeconfig=" + c.Kubeconfig("kubelet-"+n.Name), "--hostname-override=" + n.Name,
			"--node-ip=" + n.Addr4().String() + "," + n.Addr6().String(),
			"--node-labels=topology.kubernetes.io/zone=" + n.Ports[0].Subnet, "--v=2",
		}},
	}
	if c.Options.Proxy != plan.ProxyNone {
		list = append(list, host.Program{Name: "kube-proxy", Env: environ(), Argv: []string{
			c.Cache.Bin("kubernetes", "kube-proxy"), "--config=/etc/weft-lab/kube-proxy.json", "--hostname-override=" + n.Name,
		}})
	}
	return list
}

// NodeFiles are the files that a node's programs read.
func (c *Cluster) NodeFiles(n plan.Host, restrictOOM bool) (map[string]string, error) {
	kubelet, err := c.kubeletConfig(n)
	if err != nil {
		return nil, err
	}
	files := map[string]string{
		"/etc/weft-lab/containerd.toml": containerdConfig(c.Cache.Bin("debian", "runc"), restrictOOM),
		"/etc/weft-lab/kubelet.json":    kubelet,
		// Pods with dnsPolicy Default ask the cluster's DNS too: nothing else
		// could answer, as a lab has no way out.
		"/etc/resolv.conf": "nameserver " + plan.DNS4 + "\n",
		"/etc/hostname":    n.Name + "\n",
		"/etc/hosts":       fmt.Sprintf("127.0.0.1 localhost\n::1 localhost\n%s %s\n%s %s\n", n.Addr4(), n.Name, n.Addr6(), n.Name),
	}
	if c.Options.Proxy != plan.ProxyNone {
		proxy, err := c.proxyConfig()
		if err != nil {
			return nil, err
		}
		files["/etc/weft-lab/kube-proxy.json"] = proxy
	}
	return files, nil
}

func containerdConfig(runc string, restrictOOM bool) string {
	return fmt.Sprintf(`version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = %q
[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = %q
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = %t
[plugins."io.containerd.cri.v1.runtime".containerd]
  default_runtime_name = "runc"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
  BinaryName = %q
  SystemdCgroup = false
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["/opt/cni/bin"]
  conf_dir = "/etc/cni/net.d"
`, containerdSocket, build.PauseImage, restrictOOM, runc)
}

func (c *Cluster) kubeletConfig(n plan.Host) (string, error) {
	var taints []plan.Taint
	for _, s := range c.Options.Taints {
		t, err := plan.ParseTaint(s)
		if err != nil {
			return "", err
		}
		taints = append(taints, t)
	}
	user := "kubelet-" + n.Name
	return encode(map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"failCgroupV1": false, "cgroupDriver": "cgroupfs",
		"containerRuntimeEndpoint": "unix://" + containerdSocket,
		"authentication": map[string]any{
			"anonymous": map[string]any{"enabled": false},
			"webhook":   map[string]any{"enabled": true},
			"x509":      map[string]any{"clientCAFile": c.PKI.File("ca.crt")},
		},
		"authorization": map[string]any{"mode": "Webhook"},
		"tlsCertFile":   c.PKI.File(user + ".crt"), "tlsPrivateKeyFile": c.PKI.File(user + ".key"),
		"clusterDNS": []string{plan.DNS4}, "clusterDomain": plan.ClusterName, "resolvConf": "/etc/resolv.conf",
		"failSwapOn": false, "maxPods": MaxPods,
		"evictionHard":                map[string]string{"nodefs.available": "1Gi", "imagefs.available": "1Gi", "memory.available": "100Mi"},
		"imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99, // 100: images are never collected, as they could not be pulled again
		"nodeStatusUpdateFrequency": "5s", "syncFrequency": "30s",
		"registerWithTaints": taints,
	})
}

func (c *Cluster) proxyConfig() (string, error) {
	return encode(map[string]any{
		"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
		"mode": c.Options.Proxy, "clusterCIDR": podCIDRs,
		"clientConnection": map[string]any{"kubeconfig": c.Kubeconfig("proxy")},
		// These cannot be written outside of the machine's first network namespace.
		"conntrack": map[string]any{"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
	})
}

func encode(v any) (string, error) {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return "", fmt.Errorf("configuration: %w", err)
	}
	return string(b) + "\n", nil
}

// PtpConflist is the stand-in network: a veth a pod and kernel routing.
func PtpConflist(podCIDRs []string) (string, error) {
	var ranges [][]map[string]string
	var routes []map[string]string
	for _, cidr := range podCIDRs {
		ranges = append(ranges, []map[string]string{{"subnet": cidr}})
		dst := "0.0.0.0/0"
		if strings.Contains(cidr, ":") {
			dst = "::/0"
		}
		routes = append(routes, map[string]string{"dst": dst})
	}
	return encode(map[string]any{
		"cniVersion": "1.0.0", "name": "ptp",
		"plugins": []any{
			map[string]any{"type": "ptp", "ipMasq": false, "ipam": map[string]any{"type": "host-local", "ranges": ranges, "routes": routes}},
			map[string]any{"type": "portmap", "capabilities": map[string]bool{"portMappings": true}, "snat": true},
		},
	})
}
