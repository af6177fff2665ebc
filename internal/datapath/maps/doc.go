// SPDX-License-Identifier: Apache-2.0

// Package maps gives typed access to the pinned maps of the datapath: one
// wrapper a map, with rows that render as tables and JSON. Layouts come from
// bpf/lib/types.h through internal/datapath/object.
//
// A wrapper keeps no state of its own and may be used from several goroutines;
// the kernel's maps are the state. internal/datapath opens and pins them.
package maps
