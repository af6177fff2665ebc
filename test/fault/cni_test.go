// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/test/fault/labtest"
)

// conf is a plugin's configuration as the runtime gives it.
const conf = `{"cniVersion":"1.1.0","name":"weft","type":"weft-cni"}`

// cniResult is what the plugin answers: a result or an error object.
type cniResult struct {
	Code uint   `json:"code"`
	Msg  string `json:"msg"`
	Det  string `json:"details"`
	IPs  []struct {
		Address string `json:"address"`
	} `json:"ips"`
	text string
	exit int
}

func (r cniResult) String() string { return fmt.Sprintf("exit code %d: %s", r.exit, r.text) }

// attachment is a container of the test's own, which no runtime knows.
type attachment struct{ node, id, netns string }

// newAttachment makes a network namespace in a node for the plugin to work on.
func newAttachment(t *testing.T, l *labtest.Lab, node, name string) attachment {
	t.Helper()
	a := attachment{node: node, id: "weft-fault-" + name, netns: "/run/netns/weft-fault-" + name}
	t.Cleanup(func() {
		if _, err := l.TryShell(node, "ip netns del weft-fault-"+name+" 2>/dev/null || true"); err != nil {
			t.Error(err)
		}
	})
	l.Shell(t, node, "ip netns add weft-fault-"+name)
	return a
}

// cni runs the plugin in a node as the container runtime does.
func (a attachment) cni(t *testing.T, l *labtest.Lab, command, stdin string) cniResult {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), labtest.Limit)
	defer cancel()
	r, err := l.Do(ctx, strings.NewReader(stdin), "exec", a.node, "--", "env",
		"CNI_COMMAND="+command, "CNI_CONTAINERID="+a.id, "CNI_NETNS="+a.netns, "CNI_IFNAME=eth0", "CNI_PATH=/opt/cni/bin",
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=weft-fault;K8S_POD_NAME="+a.id, "/opt/cni/bin/weft-cni")
	if err != nil {
		t.Fatal(err)
	}
	res := cniResult{text: strings.TrimSpace(r.Stdout), exit: r.Code}
	if res.text != "" {
		if err := json.Unmarshal([]byte(res.text), &res); err != nil {
			t.Fatalf("the plugin's answer is no JSON: %v: %s", err, r)
		}
	}
	return res
}

// Guards against a plugin that hangs, crashes or says nothing of use when it is
// fed what is not a configuration.
func TestBrokenInputToThePlugin(t *testing.T) {
	l := labtest.Open(t)
	node := l.Nodes(t, 1)[0].Name()
	a := newAttachment(t, l, node, "input")
	good := a.cni(t, l, "STATUS", conf)
	if good.exit != 0 {
		t.Fatalf("STATUS with a good configuration: %s", good)
	}
	for name, c := range map[string]struct{ command, stdin, says string }{
		"nothing":         {"ADD", "", "configuration"},
		"no JSON":         {"ADD", "\x00\xff{]", "configuration"},
		"half of it":      {"ADD", conf[:20], "configuration"},
		"a list":          {"ADD", "[" + conf + "]", "configuration"},
		"unknown version": {"ADD", `{"cniVersion":"9.9.9","name":"weft","type":"weft-cni"}`, "9.9.9"},
		"no name":         {"ADD", `{"cniVersion":"1.1.0","type":"weft-cni"}`, "name"},
		"a megabyte":      {"ADD", `{"cniVersion":"1.1.0","name":"` + strings.Repeat("x", 1<<20) + `"}`, ""},
		"unknown command": {"EXPLODE", conf, "EXPLODE"},
		"no command":      {"", conf, "CNI_COMMAND"},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			begin := time.Now()
			res := a.cni(t, l, c.command, c.stdin)
			if res.exit == 0 || res.Code == 0 || res.Msg == "" || !strings.Contains(res.Msg+res.Det, c.says) {
				t.Errorf("want an error that names %q, got %s", c.says, res)
			}
			if took := time.Since(begin); took > 10*time.Second {
				t.Errorf("took %s", took)
			}
		})
	}
	t.Run("namespace-that-is-not-there", func(t *testing.T) {
		b := a
		b.netns = "/run/netns/weft-fault-nowhere"
		if res := b.cni(t, l, "ADD", conf); res.exit == 0 || !strings.Contains(res.Msg, b.netns) {
			t.Errorf("want an error that names %s, got %s", b.netns, res)
		}
		if res := b.cni(t, l, "DEL", conf); res.exit != 0 {
			t.Errorf("DEL of what is gone must succeed: %s", res)
		}
	})
	t.Run("added-twice-deleted-twice", func(t *testing.T) {
		first := a.cni(t, l, "ADD", conf)
		again := a.cni(t, l, "ADD", conf)
		if first.exit != 0 || len(first.IPs) == 0 || first.text != again.text {
			t.Errorf("ADD twice: %s, then %s", first, again)
		}
		for range 2 {
			if res := a.cni(t, l, "DEL", conf); res.exit != 0 {
				t.Errorf("DEL: %s", res)
			}
		}
	})
}
