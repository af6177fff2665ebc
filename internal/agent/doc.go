// SPDX-License-Identifier: Apache-2.0

// Package agent wires the parts of weft-agent together: what the API server and
// the kernel tell goes into tables, pure derivations make the desired tables of
// them, reconcilers carry those into the kernel. The order of the start is the
// heart of it: the kernel's state is taken over first, the CNI is served next,
// and only then is the API server waited for.
package agent
