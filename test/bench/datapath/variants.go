// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/weft-net/weft/test/bench/datapath/bare"
	"github.com/weft-net/weft/test/bench/sandbox"
)

// vxlanOverhead is what VXLAN over IPv4 takes of a packet.
const vxlanOverhead = 50

// variant is one way from a client to a server on another node.
type variant struct {
	name           string
	client, server sandbox.Space
	addr           netip.Addr // of the server
	// programs that a packet of an established flow meets, those of both nodes by
	// one name.
	programs map[string][]*ebpf.Program
	links    []link.Link // end when nothing refers to them any more
	// account, if not nil, attaches programs that run only while run times are taken.
	account func() (detach func() error, err error)
	// check tells afterwards whether packets took the way that they should.
	check func() error
}

type builder struct {
	name  string
	build func(pair) (*variant, error)
}

// newVariants makes all of them, in the order in which they take turns.
// With Services they are those that above_bare_ns is about.
func newVariants(services int) ([]*variant, error) {
	var all []*variant
	builders := []builder{
		{"host", onHosts},
		{"bare", bareForwarder},
		{"native", weftNative},
		{"ptp", ptp},
		{"kernel_vxlan", kernelVXLAN},
		{"vxlan", weftVXLAN},
		{"bigtcp", weftBigTCP},
	}
	if services > 0 {
		builders = []builder{{"bare", bareForwarder}, {"native", weftServing(services)}}
	}
	for _, b := range builders {
		p, err := newPair(b.name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", b.name, err)
		}
		v, err := b.build(p)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", b.name, err)
		}
		v.name = b.name
		all = append(all, v)
	}
	return all, nil
}

func (v *variant) between(p pair) { v.client, v.server, v.addr = p[0].pod, p[1].pod, p[1].podIP }

func betweenPods(p pair) *variant {
	v := &variant{}
	v.between(p)
	return v
}

// onHosts: from node to node, without pods.
func onHosts(p pair) (*variant, error) {
	return &variant{client: p[0].Space, server: p[1].Space, addr: p[1].addr}, nil
}

// bareForwarder is the limit of the path: see package bare.
func bareForwarder(p pair) (*variant, error) {
	v := &variant{programs: map[string][]*ebpf.Program{}}
	var nothing []func() (link.Link, error)
	for i, n := range p {
		pod, err := n.addPod(deviceMTU, nil)
		if err != nil {
			return nil, err
		}
		objs, err := loadBare(n, p[1-i], pod)
		if err != nil {
			return nil, err
		}
		for _, a := range []struct {
			p      *ebpf.Program
			device int
		}{{objs.BareFromPod, pod}, {objs.BareFromNet, n.index}} {
			l, err := attachBare(n, a.p, a.device, ebpf.AttachTCXIngress)
			if err != nil {
				return nil, err
			}
			v.links = append(v.links, l)
		}
		nothing = append(nothing, func() (link.Link, error) {
			return attachBare(n, objs.BareNothing, n.index, ebpf.AttachTCXEgress)
		})
		v.programs["from_pod"] = append(v.programs["from_pod"], objs.BareFromPod)
		v.programs["from_net"] = append(v.programs["from_net"], objs.BareFromNet)
		v.programs["to_net"] = append(v.programs["to_net"], objs.BareNothing)
	}
	v.between(p)
	v.account = func() (func() error, error) { return attachAll(nothing) }
	return v, nil
}

func attachAll(attach []func() (link.Link, error)) (detach func() error, err error) {
	var links []link.Link
	detach = func() (err error) {
		for _, l := range links {
			err = errors.Join(err, l.Close())
		}
		return err
	}
	for _, a := range attach {
		l, err := a()
		if err != nil {
			return nil, errors.Join(err, detach())
		}
		links = append(links, l)
	}
	return detach, nil
}

func loadBare(n, other *node, pod int) (*bare.BareObjects, error) {
	spec, err := bare.LoadBare()
	if err != nil {
		return nil, err
	}
	hop := other.addr.As4()
	for name, value := range map[string]uint32{
		bare.BareVarNetIfindex: uint32(n.index),
		bare.BareVarNextHop:    binary.NativeEndian.Uint32(hop[:]),
		bare.BareVarPodIfindex: uint32(pod),
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return nil, fmt.Errorf("constant %s: %w", name, err)
		}
	}
	var objs bare.BareObjects
	if err := spec.LoadAndAssign(&objs, nil); err != nil {
		return nil, fmt.Errorf("load the bare forwarder: %w", err)
	}
	return &objs, nil
}

func attachBare(n *node, p *ebpf.Program, device int, where ebpf.AttachType) (l link.Link, err error) {
	err = n.In(func() (err error) {
		l, err = link.AttachTCX(link.TCXOptions{Interface: device, Program: p, Attach: where})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("attach the bare forwarder (needs tcx, Linux 6.6): %w", err)
	}
	return l, nil
}

// kernelVXLAN: the kernel routes into a VXLAN device that knows the other node
// from a static FDB. As with Weft, the outer UDP checksum is 0.
func kernelVXLAN(p pair) (*variant, error) {
	mac := func(i int) string { return fmt.Sprintf("02:00:00:00:10:%02x", i+1) }
	for i, n := range p {
		if _, err := n.addPod(deviceMTU-vxlanOverhead, nil); err != nil {
			return nil, err
		}
		other := p[1-i]
		gw := other.pods.Addr()
		err := errors.Join(
			sandbox.IP(n.Name, fmt.Sprintf("link add vx0 address %s mtu %d type vxlan id 1 dstport 4789 local %s dev %s nolearning noudpcsum",
				mac(i), deviceMTU-vxlanOverhead, n.addr, nodeDevice), "link set vx0 up"),
			sandbox.Bridge(n.Name, fmt.Sprintf("fdb replace %s dev vx0 dst %s self permanent", mac(1-i), other.addr)),
			sandbox.IP(n.Name, fmt.Sprintf("neigh replace %s lladdr %s dev vx0 nud permanent", gw, mac(1-i)),
				fmt.Sprintf("route add %s via %s dev vx0 onlink", other.pods, gw)),
		)
		if err != nil {
			return nil, err
		}
	}
	return betweenPods(p), nil
}

// ptp: Debian's containernetworking-plugins give each pod a veth, the kernel
// routes between nodes. There are no rules of netfilter, which would cost more.
func ptp(p pair) (*variant, error) {
	for i, n := range p {
		if err := n.addPtpPod(); err != nil {
			return nil, err
		}
		other := p[1-i]
		if err := sandbox.IP(n.Name, fmt.Sprintf("route add %s via %s dev %s", other.pods, other.addr, nodeDevice)); err != nil {
			return nil, err
		}
	}
	return betweenPods(p), nil
}

const cniBin = "/usr/lib/cni"

func (n *node) addPtpPod() (err error) {
	if n.pod, err = sandbox.NewSpace(n.Name + "-pod"); err != nil {
		return err
	}
	conf, err := json.Marshal(map[string]any{
		"cniVersion": "1.0.0", "name": n.Name, "type": "ptp", "mtu": deviceMTU, "ipMasq": false,
		"ipam": map[string]any{
			"type": "host-local", "dataDir": "/run/cni-" + n.Name,
			"ranges": [][]map[string]string{{{"subnet": n.pods.String()}}},
			"routes": []map[string]string{{"dst": "0.0.0.0/0"}},
		},
	})
	if err != nil {
		return err
	}
	return n.In(func() error {
		cmd := exec.Command(cniBin + "/ptp")
		cmd.Env = []string{
			"CNI_COMMAND=ADD", "CNI_CONTAINERID=" + n.pod.Name, "CNI_NETNS=" + n.pod.Path,
			"CNI_IFNAME=" + nodeDevice, "CNI_PATH=" + cniBin, "PATH=" + os.Getenv("PATH"),
		}
		cmd.Stdin = bytes.NewReader(conf)
		out, err := cmd.Output()
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%w: apt-get install containernetworking-plugins", err)
		}
		var result struct {
			IPs []struct{ Address netip.Prefix }
		}
		if err := errors.Join(err, json.Unmarshal(out, &result)); err != nil {
			return fmt.Errorf("plugin ptp: %w: %s", err, out)
		}
		if len(result.IPs) != 1 {
			return fmt.Errorf("plugin ptp gave %d addresses, want 1: %s", len(result.IPs), out)
		}
		n.podIP = result.IPs[0].Address.Addr()
		return nil
	})
}
