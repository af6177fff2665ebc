// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"unicode"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/vishvananda/netns"

	"github.com/weft-net/weft/internal/cni"
)

// Conf is the network configuration that the runtime passes on stdin. Keys that
// are meant for plugins chained with this one (runtimeConfig, capabilities) are
// allowed and not looked at.
type Conf struct {
	CNIVersion string          `json:"cniVersion"`
	Name       string          `json:"name"`
	Type       string          `json:"type"`
	DNS        types.DNS       `json:"dns"`
	RawPrev    json.RawMessage `json:"prevResult"`
	// Valid is what GC is to keep; nil if the runtime gave no list, which is
	// another thing than an empty one.
	Valid []cni.Attachment `json:"-"`
}

// ParseConf reads and checks the configuration. Errors are *cni.Error.
func ParseConf(stdin []byte) (*Conf, error) {
	if len(stdin) > maxStdin {
		return nil, &cni.Error{Code: cni.CodeDecode, Msg: fmt.Sprintf("network configuration: more than %d bytes", maxStdin)}
	}
	if len(strings.TrimSpace(string(stdin))) == 0 {
		return nil, &cni.Error{
			Code: cni.CodeDecode, Msg: "network configuration: stdin is empty",
			Details: "the runtime writes the configuration to it",
		}
	}
	var c struct {
		Conf
		Valid json.RawMessage `json:"cni.dev/valid-attachments"` // also null is a list
	}
	var valid []types.GCAttachment
	err := json.Unmarshal(stdin, &c)
	if err == nil && c.Valid != nil {
		err = json.Unmarshal(c.Valid, &valid)
	}
	if err != nil {
		return nil, &cni.Error{
			Code: cni.CodeDecode, Msg: fmt.Sprintf("network configuration: %v", err),
			Details: "is /etc/cni/net.d/" + cni.ConflistName + " whole? The agent writes it anew when it is deleted",
		}
	}
	if c.CNIVersion == "" {
		c.CNIVersion = "0.1.0" // by the specification
	}
	switch {
	case !slices.Contains(cni.SupportedVersions(), c.CNIVersion):
		return nil, &cni.Error{
			Code: cni.CodeVersion, Msg: fmt.Sprintf("network configuration: cniVersion %q is not supported", c.CNIVersion),
			Details: "supported are " + strings.Join(cni.SupportedVersions(), ", "),
		}
	case c.Name == "":
		return nil, &cni.Error{Code: cni.CodeConfig, Msg: "network configuration: name is missing"}
	case c.Type != "" && c.Type != cni.PluginType:
		return nil, &cni.Error{Code: cni.CodeConfig, Msg: fmt.Sprintf("network %s: type is %q, but this is %s", c.Name, c.Type, cni.PluginType)}
	}
	if !validName(c.Name) {
		return nil, &cni.Error{Code: cni.CodeConfig, Msg: fmt.Sprintf("network configuration: name %q has invalid characters", c.Name)}
	}
	if c.Valid != nil {
		c.Conf.Valid = make([]cni.Attachment, 0, len(valid))
	}
	for _, a := range valid {
		c.Conf.Valid = append(c.Conf.Valid, cni.Attachment{ContainerID: a.ContainerID, IfName: a.IfName})
	}
	return &c.Conf, nil
}

// Previous decodes prevResult; nil if there is none. Errors are *cni.Error.
func (c *Conf) Previous() (*current.Result, error) {
	if len(c.RawPrev) == 0 || string(c.RawPrev) == "null" {
		return nil, nil
	}
	r, err := version.NewResult(c.CNIVersion, c.RawPrev)
	if err == nil {
		var res *current.Result
		if res, err = current.NewResultFromResult(r); err == nil {
			return res, nil
		}
	}
	return nil, &cni.Error{Code: cni.CodeDecode, Msg: fmt.Sprintf("network %s: prevResult: %v", c.Name, err)}
}

// older compares two supported versions.
func older(v, than string) bool {
	vs := cni.SupportedVersions()
	return slices.Index(vs, v) < slices.Index(vs, than)
}

// environment checks the variables that a command needs. Errors are *cni.Error.
func environment(cmd string, getenv func(string) string) (cni.Request, error) {
	r := cni.Request{
		Command: cmd, ContainerID: getenv("CNI_CONTAINERID"), Netns: getenv("CNI_NETNS"),
		IfName: getenv("CNI_IFNAME"), Args: getenv("CNI_ARGS"),
	}
	if cmd == "GC" || cmd == "STATUS" {
		return cni.Request{Command: cmd}, nil
	}
	var missing []string
	for _, v := range []struct{ name, value string }{{"CNI_CONTAINERID", r.ContainerID}, {"CNI_IFNAME", r.IfName}} {
		if v.value == "" {
			missing = append(missing, v.name)
		}
	}
	if r.Netns == "" && cmd != "DEL" {
		missing = append(missing, "CNI_NETNS")
	}
	if len(missing) > 0 {
		return r, &cni.Error{Code: cni.CodeEnvironment, Msg: fmt.Sprintf("%s: %s not set", cmd, strings.Join(missing, ", "))}
	}
	if !validName(r.ContainerID) {
		return r, &cni.Error{Code: cni.CodeEnvironment, Msg: fmt.Sprintf("CNI_CONTAINERID %q has invalid characters", r.ContainerID)}
	}
	if !validIfName(r.IfName) {
		return r, &cni.Error{
			Code: cni.CodeEnvironment, Msg: fmt.Sprintf("CNI_IFNAME %q cannot name an interface", r.IfName),
			Details: "a name has 1 to 15 bytes without slashes, colons and white space",
		}
	}
	if cmd == "ADD" {
		if _, err := cni.ParseArgs(r.Args); err != nil {
			return r, &cni.Error{Code: cni.CodeEnvironment, Msg: err.Error()}
		}
	}
	return r, nil
}

// validName reports whether s can name a container or a network, by the
// specification: letters, digits, and after the first also dots, underscores and
// hyphens. The CNI library's regular expression for it would be compiled in each
// execution.
func validName(s string) bool {
	for i := range len(s) {
		c := s[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || c != '.' && c != '_' && c != '-') {
			return false
		}
	}
	return s != ""
}

// validIfName is the kernel's rule (net/core/dev.c, dev_valid_name).
func validIfName(s string) bool {
	return s != "" && len(s) < 16 && s != "." && s != ".." &&
		!strings.ContainsFunc(s, func(r rune) bool { return r == '/' || r == ':' || unicode.IsSpace(r) })
}

// otherNetns makes sure that the pod's namespace is not the plugin's own: that
// would turn the node into a pod. CNI_NETNS_OVERRIDE switches the check off, for
// runtimes that execute plugins inside a namespace of the sandbox.
func otherNetns(getenv func(string) string, path string) error {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return &cni.Error{Code: cni.CodeNetns, Msg: fmt.Sprintf("CNI_NETNS %s: %v", path, err), Details: "the sandbox is gone; the runtime makes a new one"}
	}
	defer ns.Close()
	if o := getenv("CNI_NETNS_OVERRIDE"); o == "1" || strings.EqualFold(o, "true") {
		return nil
	}
	own, err := netns.Get()
	if err != nil {
		return fmt.Errorf("own network namespace: %w", err)
	}
	defer own.Close()
	if own.Equal(ns) {
		return &cni.Error{
			Code: cni.CodeNetns, Msg: fmt.Sprintf("CNI_NETNS %s is the network namespace of the runtime itself", path),
			Details: "a pod of the host's network is not attached",
		}
	}
	return nil
}

// previousIPs are the addresses that prevResult gives to the pod's interface.
func previousIPs(prev *current.Result, req cni.Request) []netip.Addr {
	var out []netip.Addr
	for _, ip := range prev.IPs {
		if ip.Interface != nil {
			i := *ip.Interface
			if i < 0 || i >= len(prev.Interfaces) || prev.Interfaces[i].Name != req.IfName || prev.Interfaces[i].Sandbox == "" {
				continue
			}
		}
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			out = append(out, a.Unmap())
		}
	}
	return out
}

// printResult writes the result in the version of the configuration. What a
// plugin before this one made stays in it.
func printResult(out io.Writer, conf *Conf, prev *current.Result, req cni.Request, r *cni.Result) error {
	res := &current.Result{CNIVersion: current.ImplementedSpecVersion, DNS: conf.DNS}
	if prev != nil {
		res.Interfaces, res.IPs, res.Routes = prev.Interfaces, prev.IPs, prev.Routes
		if conf.DNS.IsEmpty() {
			res.DNS = prev.DNS
		}
	}
	pod := len(res.Interfaces) + 1
	res.Interfaces = append(res.Interfaces,
		&current.Interface{Name: r.HostIfName, Mac: r.HostMAC, Mtu: r.MTU},
		&current.Interface{Name: req.IfName, Mac: r.MAC, Mtu: r.MTU, Sandbox: req.Netns})
	if len(r.Gateways) != len(r.IPs) {
		return &cni.Error{
			Code: cni.CodeInternal, Msg: fmt.Sprintf("the agent answered ADD with %d addresses and %d gateways", len(r.IPs), len(r.Gateways)),
			Details: "are weft-cni and the agent of one version?",
		}
	}
	for i, a := range r.IPs {
		gw := r.Gateways[i].AsSlice()
		res.IPs = append(res.IPs, &current.IPConfig{Interface: new(pod), Address: network(a, a.BitLen()), Gateway: gw})
		all := netip.IPv4Unspecified()
		if a.Is6() {
			all = netip.IPv6Unspecified()
		}
		res.Routes = append(res.Routes, &types.Route{Dst: network(all, 0), GW: gw})
	}
	old, err := res.GetAsVersion(conf.CNIVersion)
	if err != nil {
		return &cni.Error{Code: cni.CodeVersion, Msg: fmt.Sprintf("result in CNI %s: %v", conf.CNIVersion, err)}
	}
	return old.PrintTo(out)
}
