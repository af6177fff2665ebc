// SPDX-License-Identifier: Apache-2.0

// Package kube knows how Kubernetes' programs are configured for a lab, and
// asks its API server the few things that bringing it up needs.
package kube

import (
	"fmt"
	"net/netip"
	"path/filepath"

	"github.com/weft-net/weft/lab/internal/build"
	"github.com/weft-net/weft/lab/internal/host"
	"github.com/weft-net/weft/lab/internal/pki"
	"github.com/weft-net/weft/lab/internal/plan"
)

// Cluster is what all parts of the configuration need.
type Cluster struct {
	Options plan.Options
	Control plan.Host
	Dir     string // the lab's folder
	PKI     pki.Store
	Cache   *build.Cache
}

// Kubeconfig is the path of the kubeconfig for a user.
func (c *Cluster) Kubeconfig(user string) string {
	return filepath.Join(c.Dir, "kubeconfig", user)
}

// Admin is the user who may do everything.
const Admin = "admin"

// Server is the API server's URL.
func (c *Cluster) Server() string {
	return "https://" + netip.AddrPortFrom(c.Control.Addr4(), plan.APIPort).String()
}

// Credentials makes all certificates and kubeconfigs but the nodes' own.
func (c *Cluster) Credentials() error {
	if err := c.PKI.Init(); err != nil {
		return err
	}
	service := "kubernetes.default.svc"
	requests := []pki.Request{
		{
			Name: "apiserver", CN: "kube-apiserver",
			IPs: []string{c.Control.Addr4().String(), c.Control.Addr6().String(), "127.0.0.1", "::1", plan.APIService4},
			DNS: []string{"localhost", "kubernetes", "kubernetes.default", service, service + "." + plan.ClusterName},
		},
		{Name: "apiserver-kubelet", CN: "kube-apiserver-kubelet-client", Organization: "system:masters"},
		{Name: "front-proxy", CN: "front-proxy-client", CA: pki.FrontCA},
		{Name: "etcd", CN: "etcd", IPs: []string{"127.0.0.1"}, DNS: []string{"localhost"}},
		{Name: Admin, CN: "admin", Organization: "system:masters"},
		{Name: "controller-manager", CN: "system:kube-controller-manager", IPs: []string{"127.0.0.1"}},
		{Name: "scheduler", CN: "system:kube-scheduler", IPs: []string{"127.0.0.1"}},
		{Name: "proxy", CN: "system:kube-proxy"},
	}
	for _, r := range requests {
		if err := c.PKI.Issue(r); err != nil {
			return err
		}
	}
	for _, user := range []string{Admin, "controller-manager", "scheduler", "proxy"} {
		if err := c.PKI.Kubeconfig(c.Kubeconfig(user), c.Options.Name, c.Server(), user); err != nil {
			return err
		}
	}
	return nil
}

// NodeCredentials makes a node's certificate and kubeconfig.
func (c *Cluster) NodeCredentials(n plan.Host) error {
	user := "kubelet-" + n.Name
	err := c.PKI.Issue(pki.Request{
		Name: user, CN: "system:node:" + n.Name, Organization: "system:nodes",
		IPs: []string{n.Addr4().String(), n.Addr6().String()}, DNS: []string{n.Name},
	})
	if err != nil {
		return err
	}
	return c.PKI.Kubeconfig(c.Kubeconfig(user), c.Options.Name, c.Server(), user)
}

const (
	podCIDRs     = plan.PodCIDR4 + "," + plan.PodCIDR6
	serviceCIDRs = plan.ServiceCIDR4 + "," + plan.ServiceCIDR6
)

func environ(extra ...string) []string {
	return append([]string{"PATH=" + host.Path, "HOME=/root"}, extra...)
}

// ControlPrograms are the programs of the control plane, in the order of their start.
func (c *Cluster) ControlPrograms() []host.Program {
	return []host.Program{c.etcd(), c.apiServer(), c.controllerManager(), c.scheduler()}
}

func (c *Cluster) etcd() host.Program {
	return host.Program{Name: "etcd", Env: environ("GOMEMLIMIT=512MiB"), Argv: []string{
		c.Cache.Bin("etcd", "etcd"), "--name", "cp", "--data-dir", "/var/lib/etcd",
		"--unsafe-no-fsync", // a lab's state need not outlive a power cut
		"--quota-backend-bytes", "1073741824",
		"--listen-client-urls", "https://127.0.0.1:2379", "--advertise-client-urls", "https://127.0.0.1:2379",
		"--listen-peer-urls", "http://127.0.0.1:2380", "--initial-advertise-peer-urls", "http://127.0.0.1:2380",
		"--initial-cluster", "cp=http://127.0.0.1:2380",
		"--cert-file", c.PKI.File("etcd.crt"), "--key-file", c.PKI.File("etcd.key"),
		"--trusted-ca-file", c.PKI.File("ca.crt"), "--client-cert-auth",
	}}
}

func (c *Cluster) apiServer() host.Program {
	f := c.PKI.File
	return host.Program{Name: "kube-apiserver", Env: environ("GOMEMLIMIT=1536MiB"), Argv: []string{
		c.Cache.Bin("kubernetes", "kube-apiserver"),
		"--advertise-address=" + c.Control.Addr4().String(), "--bind-address=::", fmt.Sprintf("--secure-port=%d", plan.APIPort),
		"--etcd-servers=https://127.0.0.1:2379", "--etcd-cafile=" + f("ca.crt"),
		"--etcd-certfile=" + f("etcd.crt"), "--etcd-keyfile=" + f("etcd.key"),
		"--tls-cert-file=" + f("apiserver.crt"), "--tls-private-key-file=" + f("apiserver.key"),
		"--client-ca-file=" + f("ca.crt"), "--kubelet-certificate-authority=" + f("ca.crt"),
		"--kubelet-client-certificate=" + f("apiserver-kubelet.crt"), "--kubelet-client-key=" + f("apiserver-kubelet.key"),
		"--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc." + plan.ClusterName,
		"--service-account-key-file=" + f("sa.pub"), "--service-account-signing-key-file=" + f("sa.key"),
		"--service-cluster-ip-range=" + serviceCIDRs,
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
		"--enable-aggregator-routing=true", // no kube-proxy here: webhooks and APIs are reached by their pods' addresses
		"--requestheader-client-ca-file=" + f(pki.FrontCA+".crt"), "--requestheader-allowed-names=front-proxy-client",
		"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file=" + f("front-proxy.crt"), "--proxy-client-key-file=" + f("front-proxy.key"),
	}}
}

func (c *Cluster) controllerManager() host.Program {
	f, kc := c.PKI.File, c.Kubeconfig("controller-manager")
	ranges := []string{
		"--allocate-node-cidrs=true", "--cluster-cidr=" + podCIDRs,
		fmt.Sprintf("--node-cidr-mask-size-ipv4=%d", plan.NodeMask4), fmt.Sprintf("--node-cidr-mask-size-ipv6=%d", plan.NodeMask6),
	}
	if c.Options.NoNodeCIDRs {
		ranges = []string{"--allocate-node-cidrs=false"}
	}
	return host.Program{Name: "kube-controller-manager", Env: environ("GOMEMLIMIT=384MiB"), Argv: append([]string{
		c.Cache.Bin("kubernetes", "kube-controller-manager"),
		"--kubeconfig=" + kc, "--authentication-kubeconfig=" + kc, "--authorization-kubeconfig=" + kc,
		"--root-ca-file=" + f("ca.crt"), "--client-ca-file=" + f("ca.crt"),
		"--cluster-signing-cert-file=" + f("ca.crt"), "--cluster-signing-key-file=" + f("ca.key"),
		"--requestheader-client-ca-file=" + f(pki.FrontCA+".crt"),
		"--service-account-private-key-file=" + f("sa.key"), "--use-service-account-credentials=true",
		"--controllers=*,bootstrapsigner,tokencleaner", "--leader-elect=false", "--bind-address=127.0.0.1",
		"--service-cluster-ip-range=" + serviceCIDRs,
	}, ranges...)}
}

func (c *Cluster) scheduler() host.Program {
	kc := c.Kubeconfig("scheduler")
	return host.Program{Name: "kube-scheduler", Env: environ("GOMEMLIMIT=256MiB"), Argv: []string{
		c.Cache.Bin("kubernetes", "kube-scheduler"),
		"--kubeconfig=" + kc, "--authentication-kubeconfig=" + kc, "--authorization-kubeconfig=" + kc,
		"--leader-elect=false", "--bind-address=127.0.0.1",
	}}
}
