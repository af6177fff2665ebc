// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package connectivity

import (
	"errors"
	"net/netip"
	"os"
	"syscall"
)

// errLinux is what probes answer elsewhere. The test itself runs anywhere: its
// probes run in pods.
var errLinux = errors.New("probes run on Linux only; run `weft connectivity test`, which starts them in pods")

func shareAddress(_, _ string, _ syscall.RawConn) error { return nil }

func fragmentation(_, _ bool) func(_, _ string, _ syscall.RawConn) error {
	return func(_, _ string, _ syscall.RawConn) error { return errLinux }
}

func openICMP(netip.Addr, bool) (*os.File, bool, error) { return nil, false, errLinux }

func reportICMP(*os.File, bool) error { return errLinux }

func routeMTU(netip.Addr) (int, error) { return 0, errLinux }
