// SPDX-License-Identifier: Apache-2.0

package helm_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// ruleGroups is files/rules.yaml.
type ruleGroups struct {
	Groups []struct {
		Name  string  `json:"name"`
		Rules []alert `json:"rules"`
	} `json:"groups"`
}

type alert struct {
	Alert       string            `json:"alert"`
	Expr        string            `json:"expr"`
	For         string            `json:"for"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

func readRules(t *testing.T) (*ruleGroups, []alert) {
	t.Helper()
	var g ruleGroups
	readYAML(t, "weft/files/rules.yaml", &g)
	var all []alert
	for _, group := range g.Groups {
		all = append(all, group.Rules...)
	}
	if len(all) == 0 {
		t.Fatal("files/rules.yaml has no alerts")
	}
	return &g, all
}

// promtool runs it in dir.
func promtool(t *testing.T, dir string, args ...string) {
	t.Helper()
	bin, err := filepath.Abs("../../build/tools/promtool")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(bin); err != nil {
		t.Skip("needs build/tools/promtool: run make tools")
	}
	cmd := exec.Command(bin, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// testRules writes rules and a test of them to a directory and runs promtool there.
func testRules(t *testing.T, rules any, test string) {
	t.Helper()
	dir := t.TempDir()
	raw, err := yaml.Marshal(rules)
	if err != nil {
		t.Fatal(err)
	}
	cases, err := os.ReadFile(filepath.Join("testdata", test))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"rules.yaml": raw, test: cases} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	promtool(t, dir, "check", "rules", "rules.yaml")
	promtool(t, dir, "test", "rules", test)
}

// Fault: an alert that does not fire when it must, or fires when all is well; and
// a text that does not render.
func TestRules(t *testing.T) {
	all, _ := readRules(t)
	promtool(t, ".", "check", "rules", "weft/files/rules.yaml")
	testRules(t, all, "rules_text_test.yaml")
	// The many cases look at labels alone.
	bare, _ := readRules(t)
	for _, g := range bare.Groups {
		for i := range g.Rules {
			g.Rules[i].Annotations = nil
		}
	}
	testRules(t, bare, "rules_test.yaml")
}

// Fault: an alert that nobody has ever seen fire, or seen silent.
func TestEachAlertIsTested(t *testing.T) {
	var cases struct {
		Tests []struct {
			Cases []struct {
				Alert  string            `json:"alertname"`
				Alerts []json.RawMessage `json:"exp_alerts"`
			} `json:"alert_rule_test"`
		} `json:"tests"`
	}
	raw, err := os.ReadFile("testdata/rules_test.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(raw, &cases); err != nil {
		t.Fatal(err)
	}
	fires, silent := map[string]bool{}, map[string]bool{}
	for _, x := range cases.Tests {
		for _, c := range x.Cases {
			if len(c.Alerts) > 0 {
				fires[c.Alert] = true
			} else {
				silent[c.Alert] = true
			}
		}
	}
	_, alerts := readRules(t)
	for _, a := range alerts {
		if !fires[a.Alert] || !silent[a.Alert] {
			t.Errorf("%s: tested that it fires: %t, that it is silent: %t", a.Alert, fires[a.Alert], silent[a.Alert])
		}
	}
}

// Fault: an alert that leaves its reader alone: without a time for which the fault
// must last, without a severity, or without a command that exists.
func TestEachAlertSaysWhatToDo(t *testing.T) {
	doc, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	commands := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^## (weft( [a-z-]+)+)$`).FindAllStringSubmatch(string(doc), -1) {
		commands[m[1]] = true
	}
	quoted := regexp.MustCompile("`((?:weft|kubectl) [^`]+)`")
	flags := regexp.MustCompile(` -.*$`)
	_, alerts := readRules(t)
	for _, a := range alerts {
		if a.For == "" || (a.Labels["severity"] != "warning" && a.Labels["severity"] != "critical") || len(a.Labels) != 1 {
			t.Errorf("%s: for %q, labels %v", a.Alert, a.For, a.Labels)
		}
		if !strings.HasSuffix(a.Annotations["summary"], ".") || len(a.Annotations) != 2 {
			t.Errorf("%s: annotations %v, want a summary that is a sentence and a description", a.Alert, a.Annotations)
		}
		found := quoted.FindAllStringSubmatch(a.Annotations["description"], -1)
		if len(found) == 0 {
			t.Errorf("%s: no command in %q", a.Alert, a.Annotations["description"])
		}
		for _, m := range found {
			if c := flags.ReplaceAllString(m[1], ""); strings.HasPrefix(c, "weft ") && !commands[c] {
				t.Errorf("%s: there is no command %q", a.Alert, c)
			}
		}
	}
}

// Fault: the object in the cluster is not what was tested, Helm has eaten a
// template of Prometheus, or the Prometheus operator does not choose it.
func TestPrometheusRule(t *testing.T) {
	if _, ok := objects(t, render(t))["PrometheusRule/weft"]; ok {
		t.Error("a PrometheusRule that nobody asked for")
	}
	type rule struct {
		metav1.TypeMeta   `json:",inline"`
		metav1.ObjectMeta `json:"metadata"`
		Spec              ruleGroups `json:"spec"`
	}
	got := object[rule](t, render(t, "--api-versions", "monitoring.coreos.com/v1/PrometheusRule",
		"--set", "prometheus.prometheusRule.enabled=true,prometheus.prometheusRule.labels.release=stack,prometheus.prometheusRule.annotations.a=b,annotations.c=d",
	), "PrometheusRule/weft")
	want, _ := readRules(t)
	if d := cmp.Diff(*want, got.Spec); d != "" {
		t.Errorf("rules (-file +object):\n%s", d)
	}
	if got.APIVersion != "monitoring.coreos.com/v1" || got.Labels["release"] != "stack" || got.Labels["app.kubernetes.io/part-of"] != "weft" ||
		got.Annotations["a"] != "b" || got.Annotations["c"] != "d" || got.Namespace != "kube-system" {
		t.Errorf("%s %+v", got.APIVersion, got.ObjectMeta)
	}
	testRules(t, got.Spec, "rules_text_test.yaml")
}
