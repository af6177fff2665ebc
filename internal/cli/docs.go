// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

const docsHead = `# Command line

<!-- Generated from the command tree by ` + "`go test ./internal/cli -run TestDocs -update`" + `; a test keeps the two equal. -->

` + "`weft`" + ` runs on a laptop, on a node and in the agent's container. In the container it is
called ` + "`cilium`" + ` as well, so that runbooks written for Cilium work as typed:

    kubectl -n kube-system exec ds/cilium -- cilium status

`

// WriteDocs writes docs/cli.md: every command and flag that is not hidden.
func WriteDocs(w io.Writer) error {
	root := newApp(Streams{}, "").root("weft")
	root.InitDefaultCompletionCmd()
	var b strings.Builder
	b.WriteString(docsHead)
	fmt.Fprintf(&b, "%s\n\n## Global flags\n\n", root.Long)
	flagDocs(&b, root.PersistentFlags())
	commandDocs(&b, root)
	_, err := io.WriteString(w, b.String())
	return err
}

func commandDocs(b *strings.Builder, c *cobra.Command) {
	for _, sub := range c.Commands() {
		if sub.Hidden || sub.Name() == "help" {
			continue
		}
		if !sub.HasSubCommands() {
			fmt.Fprintf(b, "\n## %s\n\n%s.\n", sub.CommandPath(), strings.TrimSuffix(sub.Short, "."))
			if sub.Parent().Name() != "completion" { // cobra's own, long and known
				oneCommand(b, sub)
			}
		}
		commandDocs(b, sub)
	}
}

func oneCommand(b *strings.Builder, c *cobra.Command) {
	if c.Long != "" {
		fmt.Fprintf(b, "\n%s\n", c.Long)
	}
	fmt.Fprintf(b, "\n    %s\n", c.UseLine())
	if c.Example != "" {
		fmt.Fprintf(b, "\nExamples:\n\n    %s\n", strings.ReplaceAll(strings.TrimSpace(c.Example), "\n", "\n  "))
	}
	if local := c.LocalNonPersistentFlags(); local.HasAvailableFlags() {
		b.WriteString("\n")
		flagDocs(b, local)
	}
}

func flagDocs(b *strings.Builder, flags *pflag.FlagSet) {
	b.WriteString("| flag | default | meaning |\n|---|---|---|\n")
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		name := "`--" + f.Name + "`"
		if f.Shorthand != "" {
			name = "`-" + f.Shorthand + "`, " + name
		}
		def := f.DefValue
		if def == "[]" || def == "false" {
			def = ""
		}
		fmt.Fprintf(b, "| %s | %s | %s |\n", name, def, strings.ReplaceAll(f.Usage, "|", `\|`))
	})
}
