// SPDX-License-Identifier: Apache-2.0

package datapath

// HaveTCX asks the kernel for tcx.
var HaveTCX = haveTCX
