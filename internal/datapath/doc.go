// SPDX-License-Identifier: Apache-2.0

// Package datapath opens, loads, attaches, upgrades and unloads the BPF
// programs. The pinned maps and links are the state: the kernel forwards
// without this process, and Open takes over what an earlier one left.
//
// Under Options.Root lie maps/<map> and links/<device>_<hook>; new/ holds what
// is being made, until a rename puts it into place, and proven/ notes which
// programs passed the self-test. Changes are guarded by an flock on the root, so
// that two agents never interleave. Decision 0009 says how an upgrade goes.
package datapath
