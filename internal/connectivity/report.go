// SPDX-License-Identifier: Apache-2.0

package connectivity

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// Outcome of a cell.
type Outcome string

// Outcomes.
const (
	Passed  Outcome = "passed"
	Failed  Outcome = "failed"
	Skipped Outcome = "skipped"
)

// Row is one cell of the report.
type Row struct {
	Cell
	Outcome Outcome
	Error   string // of failed cells
	Result  Result
}

// MarshalJSON flattens the row to what a script needs.
func (r Row) MarshalJSON() ([]byte, error) {
	out := struct {
		Path    Path    `json:"path"`
		Family  Family  `json:"family,omitempty"`
		Proto   Proto   `json:"proto,omitempty"`
		Size    Size    `json:"size,omitempty"`
		From    Party   `json:"from"`
		To      Party   `json:"to"`
		Addr    string  `json:"addr,omitempty"`
		Port    uint16  `json:"port,omitempty"`
		Outcome Outcome `json:"outcome"`
		Error   string  `json:"error,omitempty"`
		Why     string  `json:"why,omitempty"` // of skipped cells
		Bytes   int     `json:"bytes,omitempty"`
		MTU     int     `json:"mtu,omitempty"`
		Source  string  `json:"source,omitempty"` // that arrived at a host outside
		Tries   int     `json:"attempts,omitempty"`
		Millis  float64 `json:"millis,omitempty"`
	}{
		Path: r.Path, Family: r.Family, Proto: r.Proto, Size: r.Size, From: r.From, To: r.To, Port: r.Port,
		Outcome: r.Outcome, Error: r.Error, Why: r.Skip, Bytes: r.Result.Bytes, MTU: r.Result.MTU,
		Source: r.Result.Source, Tries: r.Result.Attempts,
		Millis: float64(r.Result.Took.Microseconds()) / 1000,
	}
	if r.Addr.IsValid() {
		out.Addr = r.Addr.String()
	}
	return json.Marshal(out)
}

// Pair is "pod a (n1) -> pod b (n2)".
func (r Row) Pair() string { return r.From.String() + " -> " + r.To.String() }

// Report is the outcome of a test.
type Report struct {
	Run     string        `json:"run"` // id of the run
	Mode    string        `json:"mode"`
	Network *Network      `json:"network,omitempty"` // how the cluster is set up
	Passed  int           `json:"passed"`
	Failed  int           `json:"failed"`
	Skipped int           `json:"skipped"`
	Took    time.Duration `json:"took"`
	Rows    []Row         `json:"cells"`
}

// NewReport joins plan and results. A cell to run without a result failed:
// nobody knows that it works.
func NewReport(run, mode string, cells []Cell, results map[int]Result, took time.Duration) *Report {
	rep := &Report{Run: run, Mode: mode, Took: took, Rows: make([]Row, 0, len(cells))}
	for _, c := range cells {
		row := Row{Cell: c}
		res, ran := results[c.ID]
		switch {
		case c.Skip != "":
			row.Outcome = Skipped
		case c.Fail != "":
			row.Outcome, row.Error = Failed, c.Fail
		case !ran:
			row.Outcome, row.Error = Failed, "not run: its probe ended before"
		case res.Error != "":
			row.Outcome, row.Error, row.Result = Failed, res.Error, res
		default:
			row.Outcome, row.Result = Passed, res
		}
		rep.Add(row)
	}
	return rep
}

// Add appends and counts a row.
func (r *Report) Add(row Row) {
	switch row.Outcome {
	case Passed:
		r.Passed++
	case Failed:
		r.Failed++
	case Skipped:
		r.Skipped++
	}
	r.Rows = append(r.Rows, row)
}

// OK says whether something ran and nothing failed.
func (r *Report) OK() bool { return r.Failed == 0 && r.Passed > 0 }

// Summary is the last line of the output: passed of run.
func (r *Report) Summary() string {
	return fmt.Sprintf("connectivity: %d/%d passed", r.Passed, r.Passed+r.Failed)
}

// WriteText prints the table, what was skipped and why, and each failed cell.
// The summary is left to the caller, as it has to be the last line.
func (r *Report) WriteText(w io.Writer) error {
	if r.Network != nil {
		fmt.Fprintf(w, "network: %s\n\n", r.Network)
	}
	if err := r.table(w); err != nil {
		return err
	}
	r.learned(w)
	r.skipped(w)
	r.failed(w)
	return nil
}

// line of the table: a path, family and protocol, with its sizes side by side.
type line struct {
	path   Path
	family Family
	proto  Proto
	cells  map[Size]*tally
}

// idle says whether nothing of the line ran.
func (l *line) idle() bool {
	for _, t := range l.cells {
		if t.run > 0 {
			return false
		}
	}
	return true
}

type tally struct{ passed, run, skipped int }

func (t *tally) String() string {
	switch {
	case t == nil:
		return ""
	case t.run == 0:
		return "skip"
	}
	return fmt.Sprintf("%d/%d", t.passed, t.run)
}

func (r *Report) table(w io.Writer) error {
	var lines []*line
	byKey := map[string]*line{}
	for i := range r.Rows {
		row := &r.Rows[i]
		key := fmt.Sprint(row.Path, row.Family, row.Proto)
		l := byKey[key]
		if l == nil {
			l = &line{path: row.Path, family: row.Family, proto: row.Proto, cells: map[Size]*tally{}}
			byKey[key] = l
			lines = append(lines, l)
		}
		t := l.cells[row.Size]
		if t == nil {
			t = &tally{}
			l.cells[row.Size] = t
		}
		switch row.Outcome {
		case Passed:
			t.passed++
			t.run++
		case Failed:
			t.run++
		case Skipped:
			t.skipped++
		}
	}
	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(tw, "PATH\tFAMILY\tPROTOCOL\t1 B\tMTU\tMTU+1\t64 KB")
	for _, l := range lines {
		if l.idle() {
			continue // listed below, with the reason
		}
		first := l.cells[OneByte]
		for _, s := range []Size{Handshake, Query, Connect, ""} { // paths without sizes
			if t, ok := l.cells[s]; ok {
				first = t
			}
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", l.path, dash(string(l.family)), dash(string(l.proto)),
			dash(first.String()), dash(l.cells[MTU].String()), dash(l.cells[MTUPlus1].String()), dash(l.cells[Max].String()))
	}
	return tw.Flush()
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// learned counts the cells whose first answer was lost while the far end learned
// how much fits.
func (r *Report) learned(w io.Writer) {
	n := 0
	for i := range r.Rows {
		if row := &r.Rows[i]; row.LearnsMTU && row.Outcome == Passed && row.Result.Attempts > 1 {
			n++
		}
	}
	if n > 0 {
		fmt.Fprintf(w, "\nanswered at the second attempt: %d cells of %s: the host outside had to learn first how large a packet for a pod may be\n", n, PodToOutside)
	}
}

// skipped prints each reason once, with the number of cells and the paths.
func (r *Report) skipped(w io.Writer) {
	var order []string
	count := map[string]int{}
	paths := map[string][]string{}
	for i := range r.Rows {
		row := &r.Rows[i]
		if row.Outcome != Skipped {
			continue
		}
		if count[row.Skip] == 0 {
			order = append(order, row.Skip)
		}
		count[row.Skip]++
		if p := string(row.Path); !strings.Contains(" "+strings.Join(paths[row.Skip], " ")+" ", " "+p+" ") {
			paths[row.Skip] = append(paths[row.Skip], p)
		}
	}
	if len(order) == 0 {
		return
	}
	fmt.Fprintf(w, "\nskipped: %d cells\n", r.Skipped)
	for _, why := range order {
		fmt.Fprintf(w, "  %s (%d cells of %s)\n", why, count[why], strings.Join(paths[why], ", "))
	}
}

func (r *Report) failed(w io.Writer) {
	if r.Failed == 0 {
		return
	}
	fmt.Fprintf(w, "\nfailed: %d cells\n", r.Failed)
	for i := range r.Rows {
		row := &r.Rows[i]
		if row.Outcome != Failed {
			continue
		}
		fmt.Fprintf(w, "  %s: %s: %s: %s\n", row.Path, row.Pair(), what(row), row.Error)
	}
}

// what is the cell's family, protocol and size, with the bytes where known.
func what(row *Row) string {
	if row.Family == "" {
		return "status"
	}
	s := row.Name()
	if row.Result.Bytes > 0 {
		s += fmt.Sprintf(" (%d bytes, MTU %d)", row.Result.Bytes, row.Result.MTU)
	}
	if row.Addr.IsValid() {
		s += " to " + row.Addr.String()
	}
	return s
}
