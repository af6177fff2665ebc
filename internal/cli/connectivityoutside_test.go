// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"strings"
	"testing"
)

// TestOutsideFlags guards against a test that begins with a host outside that it
// cannot try, and against one that leaves the cluster from where it must not.
func TestOutsideFlags(t *testing.T) {
	for line, want := range map[string]string{
		"--external-target 192.0.2.7:443,192.0.2.8":         "192.0.2.7:443 and 192.0.2.8 are of one family",
		"--external-target 192.0.2.7:port":                  `port "port": write a number`,
		"--external-target http://192.0.2.7/":               "write HOST, HOST:PORT or [IPv6]:PORT",
		"--external-token 00112233445566778899aabbccddeeff": "--external-target names",
		"--external-target 192.0.2.7 --external-token 0011": "must be 32 hexadecimal digits",
		"--external-target 192.0.2.7 --from-outside":        "external-target from-outside",
	} {
		c := newCluster(newNode(t, answers(1)))
		r := laptop(t, c, append([]string{"connectivity", "test"}, strings.Fields(line)...)...)
		if r.code != ExitUsage || !strings.Contains(r.err, want) {
			t.Errorf("%s: exit code %d, want %q: %s", line, r.code, want, r.err)
		}
		if len(c.did) > 0 {
			t.Errorf("%s: did %v", line, c.did)
		}
	}
	for _, flag := range []string{"--from-outside", "--external-target=192.0.2.7"} {
		if r := newNode(t, answers(1)).run(t, "connectivity", "test", flag); r.code != ExitUsage || !strings.Contains(r.err, "where kubectl works") {
			t.Errorf("on a node: exit code %d: %s", r.code, r.err)
		}
	}
}
