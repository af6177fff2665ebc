// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/weft-net/weft/internal/datapath"
)

// column is one kernel of the page.
type column struct {
	name    string // Linux and its minor version
	version string // of Debian
	suite   string
	results results
}

// aspect is a row of the page: what a node must be able to do, and the tests
// that show it. A test counts in the first row that has it.
type aspect struct {
	name  string
	tests *regexp.Regexp // of package and test
}

func aspects() []aspect {
	row := func(name, pattern string) aspect { return aspect{name, regexp.MustCompile(`^internal/` + pattern)} }
	return []aspect{
		row("load: probes, maps, programs, families, sizes", `datapath(/maps \S+| Test(OpenRefuses|StackFitsOldKernels|FamilyOff\w*|ReadEvents|\w*Memory))$`),
		row("attach: beside programs of others, given up, verified", `datapath Test(BetweenFilters|PriorityTaken|MoveToTCX|GivenUpMeanwhile|OthersFilters|Verify\w*|DeviceReplaced|UnloadLeavesNothing|UnhookedDevice)$`),
		row("upgrade: other programs and maps, nothing lost", `datapath Test(Upgrade\w*|HalfSwapped|CarriedOverTwice|DeviceGoesDuringSwap|SwapTakenBack|SelfTestOnce|FailedSelfTest\w*|LayoutComparedByMembers|NoMigrationSaysWhy|SpareMembersShareMaps|Reopen\w*|ResizeCarriesOver|ForeignLayoutReplaced|GrownValuesKept|RestartKeepsTranslations)$`),
		row("forward by VXLAN", `datapath Test(Overlay\w*|ToOverlay)$`),
		row("masquerade", `datapath Test(\w*Masquerad\w*|\w*Translation\w*|PortsExhausted|HostHoldsPort|Unmasquerable|NoChecksum|HostAndPodSamePort)$`),
		row("forward natively: hosts, pods, services of kube-proxy, MTU", `datapath Test(PodsTalk|HostAndPods|ServiceOneWay|DirectAndService|PathMTU\w*|StackFragments|PriorityTagged|Matrix)$`),
		row("verdict, bytes and counters of single packets", `datapath \S+$`),
		row("veths, routes, tunnel device, rules of the host", `datapath/(link|rtnl) \S+$`),
		row("CNI ADD and DEL, restart of the agent, kill at random moments", `endpoint \S+$`),
		row("the agent on a node: start, proof, restart, routing modes", `agent \S+$`),
	}
}

// tallied is a cell of the page.
type tallied struct {
	passed, unfinished int
	failed, skipped    []string
}

func (c tallied) String() string {
	switch {
	case len(c.failed) > 0:
		return fmt.Sprintf("**fails**: %s", strings.Join(c.failed, ", "))
	case c.unfinished > 0:
		return fmt.Sprintf("**not finished** (%d passed, %d left)", c.passed, c.unfinished)
	case c.passed == 0:
		return "not tested"
	case len(c.skipped) > 0:
		return fmt.Sprintf("passes (%d; %d skipped)", c.passed, len(c.skipped))
	}
	return fmt.Sprintf("passes (%d)", c.passed)
}

// tally sorts the outcomes of one kernel into the rows.
func tally(rows []aspect, r results) ([]tallied, error) {
	out := make([]tallied, len(rows))
	for _, name := range slices.Sorted(maps.Keys(r)) {
		i := slices.IndexFunc(rows, func(a aspect) bool { return a.tests.MatchString(name) })
		_, test, _ := strings.Cut(name, " ")
		if test == "" { // a package that failed without naming a test
			i, test = len(rows)-1, strings.TrimSpace(name)
		}
		if i < 0 {
			return nil, fmt.Errorf("test %q belongs to no row of the page: see aspects()", name)
		}
		switch r[name].Action {
		case "pass":
			out[i].passed++
		case "skip":
			out[i].skipped = append(out[i].skipped, test)
		case "unfinished":
			out[i].unfinished++
		default:
			out[i].failed = append(out[i].failed, test)
		}
	}
	return out, nil
}

// check tells what keeps the kernels, the oldest first, from being supported.
func check(cols []column) error {
	var errs []error
	if len(cols) == 0 || cols[0].name != "Linux "+datapath.MinimumKernel {
		errs = append(errs, fmt.Errorf("the agent asks for Linux %s, which is not the oldest kernel here: see datapath.MinimumKernel", datapath.MinimumKernel))
	}
	for _, c := range cols {
		cells, err := tally(aspects(), c.results)
		if err != nil {
			return err
		}
		for i, cell := range cells {
			if len(cell.failed) > 0 || cell.unfinished > 0 || cell.passed == 0 {
				errs = append(errs, fmt.Errorf("%s: %s: %s", c.name, aspects()[i].name, cell))
			}
		}
	}
	return errors.Join(errs...)
}

// write renders the page. What stands around its table is a matter of the code,
// not of a run: text holds it, to be changed with the probes.
func write(w io.Writer, text fs.FS, cols []column) error {
	begin, err := fs.ReadFile(text, "head.md")
	if err != nil {
		return err
	}
	end, err := fs.ReadFile(text, "features.md")
	if err != nil {
		return err
	}
	var b strings.Builder
	verdict := "**Linux " + datapath.MinimumKernel + " is the minimum**, the oldest kernel on which all of this passes."
	if check(cols) != nil {
		verdict = "Linux " + datapath.MinimumKernel + " is to be the minimum, but **what fails or is not finished below is not promised**."
	}
	b.WriteString(strings.ReplaceAll(string(begin), "VERDICT", verdict))
	b.WriteString("| |")
	for _, c := range cols {
		fmt.Fprintf(&b, " %s<br>Debian %s (%s) |", c.name, c.version, c.suite)
	}
	fmt.Fprintf(&b, "\n|---|%s\n", strings.Repeat("---|", len(cols)))
	rows := aspects()
	cells := make([][]tallied, len(cols))
	for i, c := range cols {
		if cells[i], err = tally(rows, c.results); err != nil {
			return err
		}
	}
	for i, a := range rows {
		fmt.Fprintf(&b, "| %s |", a.name)
		for j := range cols {
			fmt.Fprintf(&b, " %s |", cells[j][i])
		}
		b.WriteByte('\n')
	}
	b.WriteString("\nSkipped, and why:\n\n")
	for _, c := range cols {
		for _, name := range slices.Sorted(maps.Keys(c.results)) {
			if o := c.results[name]; o.Action == "skip" {
				fmt.Fprintf(&b, "- %s, `%s`: %s\n", c.name, name, o.Reason)
			}
		}
	}
	b.Write(end)
	_, err = io.WriteString(w, b.String())
	return err
}
