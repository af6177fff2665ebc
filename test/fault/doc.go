// SPDX-License-Identifier: Apache-2.0

// Package fault breaks a running lab in ways that networks break and holds Weft
// to what it promises then. All of it is tests: they need a lab with Weft
// (WEFT_LAB names it) and skip without one. Each test puts back what it broke,
// and fails if the network is not whole again.
package fault
