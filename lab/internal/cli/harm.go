// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/lab/internal/lab"
	"github.com/weft-net/weft/lab/internal/state"
)

func (a *app) cut() *cobra.Command {
	var c state.Cut
	cmd := &cobra.Command{
		Use:     "cut A B",
		Short:   "Interrupt the way between two hosts (B may be \"all\"), in both directions and families",
		Example: "  weft-lab cut n1 n2\n  weft-lab cut n1 n3 --proto udp --port 8472 --one-way",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			c.A, c.B = args[0], args[1]
			return lab.Cut(cmd.Context(), a.name, c, a.out)
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.Proto, "proto", "", "only tcp, udp, sctp, icmp (of either family, but never neighbour discovery) or esp")
	f.IntVar(&c.Port, "port", 0, "only this port, whichever side uses it")
	f.BoolVar(&c.OneWay, "one-way", false, "only what A sends to B")
	return cmd
}

func (a *app) heal() *cobra.Command {
	return &cobra.Command{
		Use:   "heal [A B]",
		Short: "Take back all cuts between two hosts, or without arguments all cuts",
		Args:  cobra.MatchAll(cobra.MaximumNArgs(2), evenArgs),
		RunE: func(cmd *cobra.Command, args []string) error {
			args = append(args, "", "")
			return lab.Heal(cmd.Context(), a.name, args[0], args[1], a.out)
		},
	}
}

func evenArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 1 {
		return cobra.ExactArgs(2)(cmd, args)
	}
	return nil
}

func (a *app) link() *cobra.Command {
	var (
		i     state.Impairments
		delay time.Duration
		dev   string
	)
	cmd := &cobra.Command{
		Use:   "link HOST",
		Short: "Make a host's link bad; without flags, whole again",
		Long: "Each call states all that is wrong with the link: what is left out is put right.\n" +
			"With --mtu, --wire-mtu or --loss segmentation offload is off on all links of the lab.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			i.DelayMS = float64(delay) / float64(time.Millisecond)
			return lab.SetLink(cmd.Context(), a.name, args[0], dev, i, a.out)
		},
	}
	f := cmd.Flags()
	f.StringVar(&dev, "dev", "eth0", "device of the host")
	f.IntVar(&i.MTU, "mtu", 0, "MTU of both ends, bytes")
	f.IntVar(&i.WireMTU, "wire-mtu", 0, "larger packets vanish without a word, bytes")
	f.Float64Var(&i.Loss, "loss", 0, "loss each way, percent")
	f.DurationVar(&delay, "delay", 0, "delay each way, e.g. 20ms")
	return cmd
}
