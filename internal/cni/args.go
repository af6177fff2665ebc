// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"fmt"
	"strings"
)

// Pod is what CNI_ARGS says about the pod: the keys that kubelet's runtimes set.
type Pod struct {
	Namespace string // K8S_POD_NAMESPACE
	Name      string // K8S_POD_NAME
	UID       string // K8S_POD_UID, not set by every runtime
}

// ParseArgs reads CNI_ARGS: pairs KEY=VALUE with semicolons between. Keys that
// it does not know are allowed. Namespace and name are required.
func ParseArgs(args string) (Pod, error) {
	var p Pod
	for pair := range strings.SplitSeq(args, ";") {
		if pair == "" {
			continue
		}
		k, v, ok := strings.Cut(pair, "=")
		if !ok {
			return Pod{}, fmt.Errorf("CNI_ARGS: %q is not KEY=VALUE", pair)
		}
		switch k {
		case "K8S_POD_NAMESPACE":
			p.Namespace = v
		case "K8S_POD_NAME":
			p.Name = v
		case "K8S_POD_UID":
			p.UID = v
		}
	}
	if p.Namespace == "" || p.Name == "" {
		return Pod{}, fmt.Errorf("CNI_ARGS: K8S_POD_NAMESPACE or K8S_POD_NAME is missing: weft-cni attaches pods of Kubernetes only")
	}
	// They go into aliases, logs and files.
	for _, s := range []string{p.Namespace, p.Name, p.UID} {
		if i := strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r == '/' || r > '~' }); i >= 0 {
			return Pod{}, fmt.Errorf("CNI_ARGS: %q is not a name or UID of Kubernetes", s)
		}
	}
	return p, nil
}
