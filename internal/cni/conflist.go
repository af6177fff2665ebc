// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"fmt"
)

// Names of Weft's network configuration.
const (
	ConflistName = "05-weft.conflist"
	NetworkName  = "weft"
	PluginType   = "weft-cni" // also the name of the binary
)

// Conflist returns the contents of 05-weft.conflist. portMap chains the portmap
// plugin of the CNI project, which serves hostPorts; its binary must be there.
//
// cniVersion is what every runtime understands; one that reads cniVersions (CNI
// 1.1) takes the highest of them, and with it STATUS and GC.
func Conflist(portMap bool) ([]byte, error) {
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
	if portMap {
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
