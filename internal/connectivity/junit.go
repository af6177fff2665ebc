// SPDX-License-Identifier: Apache-2.0

package connectivity

import (
	"encoding/xml"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

type junitSuites struct {
	XMLName  xml.Name     `xml:"testsuites"`
	Name     string       `xml:"name,attr"`
	Tests    int          `xml:"tests,attr"`
	Failures int          `xml:"failures,attr"`
	Skipped  int          `xml:"skipped,attr"`
	Time     string       `xml:"time,attr"`
	Suites   []junitSuite `xml:"testsuite"`
}

type junitSuite struct {
	Name     string      `xml:"name,attr"`
	Tests    int         `xml:"tests,attr"`
	Failures int         `xml:"failures,attr"`
	Skipped  int         `xml:"skipped,attr"`
	Cases    []junitCase `xml:"testcase"`
}

type junitCase struct {
	Class   string        `xml:"classname,attr"`
	Name    string        `xml:"name,attr"`
	Time    string        `xml:"time,attr"`
	Failure *junitMessage `xml:"failure,omitempty"`
	Skipped *junitMessage `xml:"skipped,omitempty"`
}

type junitMessage struct {
	Message string `xml:"message,attr"`
}

// WriteJUnit writes the report as JUnit XML, one suite a path, one case a cell.
func (r *Report) WriteJUnit(w io.Writer) error {
	doc := junitSuites{
		Name: "connectivity", Tests: len(r.Rows), Failures: r.Failed, Skipped: r.Skipped,
		Time: fmt.Sprintf("%.3f", r.Took.Seconds()),
	}
	index := map[Path]int{}
	for i := range r.Rows {
		row := &r.Rows[i]
		n, ok := index[row.Path]
		if !ok {
			n = len(doc.Suites)
			index[row.Path] = n
			doc.Suites = append(doc.Suites, junitSuite{Name: string(row.Path)})
		}
		s := &doc.Suites[n]
		c := junitCase{
			Class: "connectivity." + string(row.Path), Name: printable(row.Name() + ": " + row.Pair()),
			Time: fmt.Sprintf("%.3f", row.Result.Took.Seconds()),
		}
		s.Tests++
		switch row.Outcome {
		case Failed:
			s.Failures++
			c.Failure = &junitMessage{Message: printable(row.Error)}
		case Skipped:
			s.Skipped++
			c.Skipped = &junitMessage{Message: printable(row.Skip)}
		case Passed:
		}
		s.Cases = append(s.Cases, c)
	}
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return err
	}
	enc := xml.NewEncoder(w)
	enc.Indent("", "  ")
	if err := enc.Encode(doc); err != nil {
		return fmt.Errorf("junit: %w", err)
	}
	_, err := io.WriteString(w, "\n")
	return err
}

// printable replaces what XML 1.0 cannot hold: an error may carry anything.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || (r < ' ' && r != '\t' && r != '\n') {
			return '?'
		}
		return r
	}, s)
}
