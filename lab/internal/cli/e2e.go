// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/lab/internal/lab"
)

func (a *app) e2e() *cobra.Command {
	var o lab.E2EOptions
	c := &cobra.Command{
		Use:     "e2e",
		Short:   "Run Kubernetes' own end-to-end tests in the lab (needs `weft-lab build --with-e2e`)",
		Example: `  weft-lab e2e --focus '\[sig-network\].*\[Conformance\]' --skip '\[Serial\]|\[Disruptive\]' --procs 6`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := a.open()
			if err != nil {
				return err
			}
			r, err := l.E2E(cmd.Context(), o, a.out)
			if err != nil {
				return err
			}
			for _, f := range r.Failures {
				fmt.Fprintln(a.out, f)
			}
			fmt.Fprintf(a.out, "e2e: %d passed, %d failed\n", r.Passed, r.Failed)
			if r.Failed > 0 || r.Passed == 0 {
				return fmt.Errorf("e2e: %d of %d tests failed", r.Failed, r.Passed+r.Failed)
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&o.Focus, "focus", `\[sig-network\].*\[Conformance\]`, "tests to run (regular expression)")
	f.StringVar(&o.Skip, "skip", "", "tests to leave out (regular expression)")
	f.IntVar(&o.Procs, "procs", 4, "tests at once")
	f.StringVar(&o.JUnit, "junit", "", "folder for junit.xml")
	f.DurationVar(&o.Limit, "timeout", 20*time.Minute, "for all tests together")
	return c
}
