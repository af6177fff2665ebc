// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"text/template"
	"time"

	"github.com/weft-net/weft/test/fault/labtest"
)

// trafficReport is what `traffic send` prints.
type trafficReport struct {
	Sent, Received, Lost, Overflow uint64
	MissingMS                      []int64   `json:"missingMs"`
	Started                        time.Time `json:"started"`
	TCPBytes                       uint64    `json:"tcpBytes"`
	TCPResets                      int       `json:"tcpResets"`
	TCPError                       string    `json:"tcpError"`
	LongestGapMS                   int64     `json:"longestGapMs"`
	LongestStallMS                 int64     `json:"longestStallMs"`
}

// stream is one sender and where it sends to.
type stream struct {
	name     string
	from, to string // nodes
	host     bool   // between the nodes themselves: the control
	v6       bool
	report   trafficReport
}

func (s *stream) String() string {
	kind, family := "pods", "IPv4"
	if s.host {
		kind = "hosts"
	}
	if s.v6 {
		family = "IPv6"
	}
	return fmt.Sprintf("%s %s -> %s %s", kind, s.from, s.to, family)
}

// The image that every lab's nodes hold, and where traffic lies in a node.
const (
	busybox     = "registry.k8s.io/e2e-test-images/busybox:1.37.0-1"
	trafficDir  = "/run/weft-fault"
	trafficPort = 19200
)

// buildTraffic makes build/bin/traffic if it is not up to date, and copies it
// into the nodes.
func buildTraffic(t *testing.T, l *labtest.Lab, nodes []labtest.Node) {
	t.Helper()
	bin := filepath.Join(l.Build, "traffic")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", bin, "../traffic")
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build traffic: %v: %s", err, out)
	}
	for i := range nodes {
		l.Push(t, nodes[i].Name(), bin, trafficDir+"/traffic")
	}
}

var podTemplate = template.Must(template.New("pod").Parse(`apiVersion: v1
kind: Pod
metadata:
  name: {{.Name}}
  namespace: {{.Namespace}}
  labels: {app: {{.Label}}}
spec:
  nodeName: {{.Node}}
  hostNetwork: {{.Host}}
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  tolerations: [{operator: Exists}]
  containers:
  - name: traffic
    image: ` + busybox + `
    imagePullPolicy: IfNotPresent
    command: [{{range $i, $a := .Command}}{{if $i}}, {{end}}"{{$a}}"{{end}}]
    securityContext: {capabilities: {add: [NET_ADMIN]}}
    volumeMounts: [{name: bin, mountPath: /traffic}]
  volumes: [{name: bin, hostPath: {path: ` + trafficDir + `}}]
---
`))

// podSpec is what a test's pod needs to have said.
type podSpec struct {
	Name, Namespace, Label, Node string
	Host                         bool
	Command                      []string
}

func manifest(t *testing.T, pods []podSpec) string {
	t.Helper()
	var b bytes.Buffer
	for _, p := range pods {
		if err := podTemplate.Execute(&b, p); err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

// namespace makes a namespace and deletes it, and all in it, at the end.
func namespace(t *testing.T, l *labtest.Lab, name string) {
	t.Helper()
	if _, err := l.TryKubectl("delete", "namespace", name, "--ignore-not-found", "--wait", "--timeout=50s"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := l.TryKubectl("delete", "namespace", name, "--ignore-not-found", "--wait", "--timeout=50s"); err != nil {
			t.Errorf("namespace %s stays: %v", name, err)
		}
	})
	l.Kubectl(t, "create", "namespace", name)
	labtest.Eventually(t, 20*time.Second, "service account", func() error {
		_, err := l.TryKubectl("get", "serviceaccount", "default", "-n", name)
		return err
	})
}

// apply makes pods and waits until they are ready.
func apply(t *testing.T, l *labtest.Lab, pods []podSpec) {
	t.Helper()
	l.MustIn(t, manifest(t, pods), labtest.KubectlArgs("apply", "-f", "-")...)
	for _, p := range pods {
		l.Kubectl(t, "wait", "--for=condition=Ready", "pod", p.Name, "-n", p.Namespace, "--timeout=50s")
	}
}

// load is a set of streams that run until stopped.
type load struct {
	lab     *labtest.Lab
	ns      string
	streams []*stream
}

// pairs of nodes that streams run between: one subnet, across the router if
// there is a third node, and one the other way.
func streamPairs(nodes []labtest.Node) [][2]string {
	pairs := [][2]string{{nodes[0].Name(), nodes[1].Name()}, {nodes[1].Name(), nodes[0].Name()}}
	if len(nodes) > 2 {
		pairs = append(pairs, [2]string{nodes[0].Name(), nodes[2].Name()})
	}
	return pairs
}

// startLoad starts receivers on all nodes, pods' and hosts', and then a sender
// a pair and family, at rate datagrams a second for at most limit.
func startLoad(t *testing.T, l *labtest.Lab, ns string, nodes []labtest.Node, rate int, limit time.Duration) *load {
	t.Helper()
	buildTraffic(t, l, nodes)
	namespace(t, l, ns)
	recv := []string{"/traffic/traffic", "recv", "--port", strconv.Itoa(trafficPort)}
	var receivers []podSpec
	for i := range nodes {
		n := nodes[i].Name()
		receivers = append(receivers,
			podSpec{Name: "recv-" + n, Namespace: ns, Label: "recv", Node: n, Command: recv},
			podSpec{Name: "host-recv-" + n, Namespace: ns, Label: "recv", Node: n, Host: true, Command: recv})
	}
	apply(t, l, receivers)

	ld := &load{lab: l, ns: ns}
	var senders []podSpec
	for _, pair := range streamPairs(nodes) {
		for _, v6 := range []bool{false, true} {
			for _, host := range []bool{false, true} {
				s := &stream{from: pair[0], to: pair[1], host: host, v6: v6}
				to := receiverAddr(t, l, ns, s)
				if !to.IsValid() {
					continue // the cluster does not speak this family
				}
				s.name = "send-" + strings.NewReplacer(" -> ", "-", " ", "-").Replace(strings.ToLower(s.String()))
				ld.streams = append(ld.streams, s)
				senders = append(senders, podSpec{Name: s.name, Namespace: ns, Label: "send", Node: s.from, Host: host, Command: []string{
					"/traffic/traffic", "send", "--to", to.String(), "--port", strconv.Itoa(trafficPort),
					"--rate", strconv.Itoa(rate), "--duration", limit.String(),
				}})
			}
		}
	}
	apply(t, l, senders)
	return ld
}

func receiverAddr(t *testing.T, l *labtest.Lab, ns string, s *stream) netip.Addr {
	t.Helper()
	name := "recv-" + s.to
	if s.host {
		name = "host-" + name
	}
	var p labtest.Pod
	l.Get(t, &p, "pod", name, "-n", ns)
	return p.Addr(s.v6)
}

// stop ends all senders and reads what they saw.
func (ld *load) stop(t *testing.T) {
	t.Helper()
	for _, s := range ld.streams {
		ld.lab.Kubectl(t, "exec", "-n", ld.ns, s.name, "--", "/bin/kill", "-TERM", "1")
	}
	for _, s := range ld.streams {
		labtest.Eventually(t, 40*time.Second, "end of "+s.String(), func() error {
			out, err := ld.lab.TryKubectl("get", "pod", s.name, "-n", ld.ns, "-o", "jsonpath={.status.phase}")
			if err == nil && out != "Succeeded" && out != "Failed" {
				err = fmt.Errorf("pod %s is %s", s.name, out)
			}
			return err
		})
		logs := ld.lab.Kubectl(t, "logs", s.name, "-n", ld.ns)
		if err := readReport(logs, &s.report); err != nil {
			t.Fatalf("%s: %v: %s", s, err, logs)
		}
	}
}

// readReport finds the report among a sender's logs: kubelet keeps no order
// between the error that a sender ends with and what it printed before.
func readReport(logs string, to *trafficReport) error {
	for line := range strings.Lines(logs) {
		if strings.HasPrefix(line, "{") {
			return json.Unmarshal([]byte(line), to)
		}
	}
	return errors.New("no report")
}

// void says why the run proves nothing: the network under the pods, or the
// machine itself, lost packets. "" for a run that counts.
func (ld *load) void() string {
	for _, s := range ld.streams {
		switch {
		case s.report.Overflow > 0:
			return fmt.Sprintf("%s: %d datagrams arrived and found their socket full: the machine was too busy", s, s.report.Overflow)
		case s.host && (s.report.Lost > 0 || s.report.TCPResets > 0):
			return fmt.Sprintf("control stream %s lost %d of %d datagrams and %d connections", s, s.report.Lost, s.report.Sent, s.report.TCPResets)
		}
	}
	return ""
}

// judge fails the test for everything that a pod's stream lost, beyond spare
// datagrams a stream.
func (ld *load) judge(t *testing.T, events string, spare uint64) {
	t.Helper()
	for _, s := range ld.streams {
		r := s.report
		t.Logf("%s: %d datagrams, %d lost, longest gap %d ms; TCP %d bytes, %d resets, longest stall %d ms",
			s, r.Sent, r.Lost, r.LongestGapMS, r.TCPBytes, r.TCPResets, r.LongestStallMS)
		if r.Sent == 0 || r.TCPBytes == 0 {
			t.Errorf("%s: nothing was sent", s)
		}
		if s.host {
			continue
		}
		if r.Lost > spare {
			t.Errorf("%s: %d of %d datagrams lost, at %s\n%s", s, r.Lost, r.Sent, moments(r), events)
		}
		if r.TCPResets > 0 {
			t.Errorf("%s: connection lost after %d bytes: %s\n%s", s, r.TCPBytes, r.TCPError, events)
		}
	}
}

// moments lists when the first lost datagrams were sent.
func moments(r trafficReport) string {
	var list []string
	for _, ms := range r.MissingMS {
		list = append(list, r.Started.Add(time.Duration(ms)*time.Millisecond).UTC().Format("15:04:05.000"))
	}
	return strings.Join(list, " ")
}
