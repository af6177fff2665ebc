// SPDX-License-Identifier: Apache-2.0

package reason_test

import (
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/datapath/reason"
)

var enumerator = regexp.MustCompile(`(?m)^\t(VERDICT|NOTE|DROP)_([A-Z_]+) = (\d+),`)

// TestTableEqualsHeader guards against a drop whose number the agent would show
// under another reason's name, or under none.
func TestTableEqualsHeader(t *testing.T) {
	src, err := os.ReadFile("../../../bpf/lib/reasons.h")
	if err != nil {
		t.Fatal(err)
	}
	inC := map[reason.Code]string{}
	for _, m := range enumerator.FindAllStringSubmatch(string(src), -1) {
		n, err := strconv.Atoi(m[3])
		if err != nil {
			t.Fatal(err)
		}
		inC[reason.Code(n)] = strings.ToLower(strings.ReplaceAll(m[2], "_", "-"))
	}
	if len(inC) < 30 {
		t.Fatalf("parsed only %d codes out of reasons.h: the pattern no longer fits", len(inC))
	}
	for _, i := range reason.All() {
		if inC[i.Code] != i.Name {
			t.Errorf("code %d: %q in Go, %q in C", i.Code, i.Name, inC[i.Code])
		}
		delete(inC, i.Code)
	}
	for c, n := range inC {
		t.Errorf("code %d (%s) stands in reasons.h only", c, n)
	}
}

// TestExplained guards against a drop that leaves the operator alone.
func TestExplained(t *testing.T) {
	for _, i := range reason.All() {
		if i.Meaning == "" {
			t.Errorf("%s: no meaning", i.Name)
		}
		if i.Code.Class() == reason.ClassDrop && i.Remedy == "" {
			t.Errorf("%s: a drop without a remedy", i.Name)
		}
	}
}

// TestDocumented guards against counters and drops that docs/datapath.md does
// not explain, or explains otherwise.
func TestDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../../docs/datapath.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range reason.All() {
		want := "| `" + i.Name + "` | "
		if i.Code.Class() == reason.ClassDrop {
			want += i.Meaning + " | " + i.Remedy + " |"
		}
		if !strings.Contains(string(doc), want) {
			t.Errorf("docs/datapath.md lacks the line %q", want)
		}
	}
}

// TestHooksEqualHeader guards against counters shown under another hook.
func TestHooksEqualHeader(t *testing.T) {
	src, err := os.ReadFile("../../../bpf/lib/reasons.h")
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range reason.Hooks() {
		want := "HOOK_" + strings.ToUpper(h.String()) + " = " + strconv.Itoa(int(h)) + ","
		if !strings.Contains(string(src), want) {
			t.Errorf("reasons.h lacks %q", want)
		}
	}
}
