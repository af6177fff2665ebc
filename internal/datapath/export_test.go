// SPDX-License-Identifier: Apache-2.0

package datapath

// DecodeEvent lets tests read the ring buffer record by record.
var DecodeEvent = decodeEvent

// ForgetTCX makes the datapath behave as on a kernel without tcx.
func (d *Datapath) ForgetTCX() { d.features.tcx = false }
