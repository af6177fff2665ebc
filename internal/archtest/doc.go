// SPDX-License-Identifier: Apache-2.0

// Package archtest holds the rules of docs/ARCHITECTURE.md and of the project's
// style as tests: who may import whom, how large things may grow, what every
// file and package must say. It has no code of its own.
package archtest
