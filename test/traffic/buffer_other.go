// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package main

import "net"

func largeBuffer(c *net.UDPConn, size int) { _ = c.SetReadBuffer(size) }

// overflows cannot be known here.
func overflows() uint64 { return 0 }
