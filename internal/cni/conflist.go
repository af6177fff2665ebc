// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"fmt"
	"slices"
)

// Names of Weft's network configuration.
const (
	ConflistName = "05-weft.conflist"
	NetworkName  = "weft"
	PluginType   = "weft-cni" // also the name of the binary
)

// Conflist returns the contents of 05-weft.conflist. portMap holds the CNI
// versions of the portmap plugin of the CNI project, which serves hostPorts and
// is then chained; empty leaves it out.
//
// cniVersion is what every runtime understands; one that reads cniVersions (CNI
// 1.1) takes the highest of them, and with it STATUS and GC. A version is only
// listed if all plugins speak it: a portmap from before 1.1 answers STATUS with
// an error, which the runtime would take for a node that is not ready.
func Conflist(portMap []string) ([]byte, error) {
	type plugin struct {
		Type         string          `json:"type"`
		Capabilities map[string]bool `json:"capabilities,omitempty"`
	}
	list := struct {
		CNIVersion  string   `json:"cniVersion"`
		CNIVersions []string `json:"cniVersions"`
		Name        string   `json:"name"`
		Plugins     []plugin `json:"plugins"`
	}{
		CNIVersion: "1.0.0", CNIVersions: SupportedVersions(), Name: NetworkName,
		Plugins: []plugin{{Type: PluginType}},
	}
	if len(portMap) > 0 {
		list.CNIVersions = slices.DeleteFunc(list.CNIVersions, func(v string) bool { return !slices.Contains(portMap, v) })
		list.Plugins = append(list.Plugins, plugin{Type: "portmap", Capabilities: map[string]bool{"portMappings": true}})
	}
	b, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("%s: %w", ConflistName, err)
	}
	return append(b, '\n'), nil
}

// SupportedVersions lists the CNI versions that the plugin speaks, ascending.
func SupportedVersions() []string { return []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"} }
