// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/connectivity"
)

const listenLong = `Runs on a host outside the cluster and answers the pods of a test: they learn which
source address arrives here, and so whether the cluster masquerades as it should.
It answers only those who know its token, and prints the flags that give
host and token to ` + "`weft connectivity test`" + `. It ends with ^C.

Where the API server can be reached from the host outside, run the test itself there
with --from-outside: then the nodes are tried from it, too.`

// outsideFlags are those of `connectivity test` about the host outside.
func (f *testFlags) outsideFlags(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.BoolVar(&f.opts.Outside.Here, "from-outside", false, "this machine is outside the cluster: try pods against it and nodes from it")
	fl.StringSliceVar(&f.targets, "external-target", nil, "a host outside, HOST[:PORT], at most one address a family: try pods against it")
	fl.StringVar(&f.token, "external-token", "", "what `weft connectivity listen` printed at --external-target")
	fl.BoolVar(&f.opts.Outside.NAT, "external-nat", false, "something between cluster and host outside translates addresses: take any source address")
	cmd.MarkFlagsMutuallyExclusive("from-outside", "external-target")
}

// outside reads the flags into the options.
func (f *testFlags) outside(ctx context.Context, onNode bool) error {
	o := &f.opts.Outside
	if onNode && (o.Here || len(f.targets) > 0) {
		return errors.New("--from-outside and --external-target need pods, which cannot be made from here: run it where kubectl works")
	}
	seen := map[bool]string{}
	for _, s := range f.targets {
		addrs, err := connectivity.ParseTarget(ctx, s)
		if err != nil {
			return err
		}
		for _, at := range addrs {
			if first := seen[at.Addr().Is6()]; first != "" {
				return fmt.Errorf("--external-target: %s and %s are of one family: give one address a family", first, s)
			}
			seen[at.Addr().Is6()] = s
			o.Targets = append(o.Targets, at)
		}
	}
	if f.token == "" {
		return nil
	}
	token, err := connectivity.ParseToken(f.token)
	if err != nil {
		return fmt.Errorf("--external-token: %w", err)
	}
	if len(o.Targets) == 0 {
		return errors.New("--external-token is of a host that --external-target names: give that, too")
	}
	for i, at := range o.Targets {
		if at.Port() == 0 {
			o.Targets[i] = netip.AddrPortFrom(at.Addr(), f.opts.Port)
		}
	}
	o.Token = &token
	return nil
}

func (a *app) connectivityListen() *cobra.Command {
	var addresses []string
	var port uint16
	c := &cobra.Command{
		Use: "listen", Short: "Answer a test's pods on a host outside the cluster", Long: listenLong, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.listenOutside(cmd.Context(), addresses, port) },
	}
	c.Flags().StringSliceVar(&addresses, "address", nil, "addresses of this host to answer on (default: all of its own)")
	c.Flags().Uint16Var(&port, "port", connectivity.DefaultPort, "TCP and UDP port to answer on")
	return c
}

func (a *app) listenOutside(ctx context.Context, addresses []string, port uint16) error {
	cfg := connectivity.ServeConfig{Port: port, Token: connectivity.NewToken()}
	for _, s := range addresses {
		addr, err := netip.ParseAddr(s)
		if err != nil {
			return fmt.Errorf("--address: %w", err)
		}
		cfg.Addrs = append(cfg.Addrs, addr)
	}
	if len(cfg.Addrs) == 0 {
		var err error
		if cfg.Addrs, err = connectivity.Addresses(); err != nil {
			return err
		}
	}
	// One address a family is what a test takes.
	var targets []string
	for _, v6 := range []bool{false, true} {
		for _, addr := range cfg.Addrs {
			if addr.Is6() == v6 {
				targets = append(targets, netip.AddrPortFrom(addr, port).String())
				break
			}
		}
	}
	return connectivity.Serve(ctx, cfg, func() {
		fmt.Fprintf(a.Out, "weft connectivity test --external-target %s --external-token %s\n", strings.Join(targets, ","), cfg.Token)
	})
}
