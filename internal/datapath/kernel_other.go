// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package datapath

import (
	"errors"

	"github.com/cilium/ebpf/link"
)

// The command line is built for other systems too; the datapath is Linux.

func probe(string) error         { return errors.ErrUnsupported }
func fibFlags() uint32           { return 0 }
func flock(int) error            { return errors.ErrUnsupported }
func checkEthernet(int) error    { return errors.ErrUnsupported }
func detachLink(link.Link) error { return errors.ErrUnsupported }
