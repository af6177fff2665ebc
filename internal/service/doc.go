// SPDX-License-Identifier: Apache-2.0

// Package service turns Services and EndpointSlices into frontends: rows of
// what clients connect to and which backends may answer, as one node sees it.
//
// A Model is fed with changes and says at each Commit which frontends are new,
// different or gone. A change of a slice costs the work of one Service. Backends
// and ports of Services have numbers that stay theirs while they exist, and that
// a restarted agent takes over from the kernel (Restore, Settle).
//
// Which backends count follows kube-proxy, where KEP-1669 (terminating ones),
// KEP-2086 (internalTrafficPolicy), KEP-2433 (hints), KEP-3015 (forNodes) and
// KEP-1860 (ipMode) leave it to the proxy. trafficDistribution itself is not
// looked at: whoever writes the slices turns it into hints. publishNotReadyAddresses
// is not either: the slices' writer marks such endpoints ready, also those
// that serve nothing or terminate, and "ready" alone is what counts.
//
// Package oracle says the same once more, slowly and obviously right.
package service
