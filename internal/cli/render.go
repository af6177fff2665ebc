// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"sigs.k8s.io/yaml"
)

// row is implemented by pointers to the row types: one rendering for the CLI,
// tests and dumps.
type row[T any] interface {
	*T
	TableHeader() []string
	TableRow() []string
}

// lined is implemented by rows that take several lines; cells that go on from the
// line above are blank.
type lined interface{ TableLines() [][]string }

// linesOf renders one row.
func linesOf[T any, P row[T]](r P) [][]string {
	if l, ok := any(r).(lined); ok {
		return l.TableLines()
	}
	return [][]string{r.TableRow()}
}

// printRows prints the rows of all replies that hold any. With nodes, a column
// NODE (in JSON and YAML a field "node") says whose each row is. It returns how
// many lines a table has; of other forms -1.
func printRows[T any, P row[T]](w io.Writer, output string, replies []reply, withNode bool) (int, error) {
	if output != "table" {
		return -1, printRaw(w, output, replies, withNode)
	}
	header := P(new(T)).TableHeader()
	if withNode {
		header = append([]string{"NODE"}, header...)
	}
	var lines [][]string
	for _, r := range replies {
		if r.err != nil {
			continue
		}
		var rows []T
		if err := json.Unmarshal(r.body, &rows); err != nil {
			return 0, fmt.Errorf("%sanswer: %w", prefix(r.node), err)
		}
		for i := range rows {
			for _, line := range linesOf[T](P(&rows[i])) {
				if withNode {
					line = append([]string{r.node}, line...)
				}
				lines = append(lines, line)
			}
		}
	}
	return len(lines), printTable(w, header, lines)
}

// printRaw passes on the objects as the agents sent them, so that nothing is
// lost where CLI and agent are of different versions.
func printRaw(w io.Writer, output string, replies []reply, withNode bool) error {
	all := []json.RawMessage{}
	for _, r := range replies {
		if r.err != nil {
			continue
		}
		var objs []json.RawMessage
		if err := json.Unmarshal(r.body, &objs); err != nil {
			return fmt.Errorf("%sanswer: %w", prefix(r.node), err)
		}
		for _, o := range objs {
			if withNode {
				o = addNode(o, r.node)
			}
			all = append(all, o)
		}
	}
	return printObject(w, output, all)
}

// addNode puts a field "node" in front of the object's own.
func addNode(obj json.RawMessage, node string) json.RawMessage {
	obj = bytes.TrimSpace(obj)
	if len(obj) < 2 || obj[0] != '{' {
		return obj
	}
	name, _ := json.Marshal(node) // a string always marshals
	out := append([]byte(`{"node":`), name...)
	rest := bytes.TrimSpace(obj[1:])
	if rest[0] != '}' {
		out = append(out, ',')
	}
	return append(out, rest...)
}

// printObject prints v as JSON or YAML.
func printObject(w io.Writer, output string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	if output == "yaml" {
		if b, err = yaml.JSONToYAML(b); err != nil {
			return err
		}
		_, err = w.Write(b)
		return err
	}
	_, err = fmt.Fprintln(w, string(b))
	return err
}

// printTable aligns the lines under the header.
func printTable(w io.Writer, header []string, lines [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(tw, strings.Join(header, "\t"))
	for _, l := range lines {
		for i, cell := range l {
			if cell == "" {
				l[i] = "-"
			}
		}
		fmt.Fprintln(tw, strings.Join(l, "\t"))
	}
	return tw.Flush()
}

func prefix(node string) string {
	if node == "" {
		return ""
	}
	return node + ": "
}
