// SPDX-License-Identifier: Apache-2.0

package datapath

import "github.com/cilium/ebpf"

// DecodeEvent lets tests read the ring buffer record by record.
var DecodeEvent = decodeEvent

// ForgetTCX makes the datapath behave as on a kernel without tcx.
func (d *Datapath) ForgetTCX() { d.features.tcx = false }

// Untested leaves out the self-test, for tests that open many datapaths.
func (o Options) Untested() Options {
	o.inject.untested = true
	return o
}

// WithObject loads the programs of another release.
func (o Options) WithObject(code []byte) Options {
	o.inject.object = code
	return o
}

// WithPatch changes the programs before they are loaded.
func (o Options) WithPatch(f func(*ebpf.CollectionSpec)) Options {
	o.inject.patch = f
	return o
}

// WithFault makes steps of a swap fail.
func (o Options) WithFault(f func(step string) error) Options {
	o.inject.fault = f
	return o
}
