// SPDX-License-Identifier: Apache-2.0

// Package e2e runs scripts against a lab in which Weft is installed (WEFT_LAB
// names it; without one the tests skip). Scripts are txtar archives for
// testscript, in this folder, and test/runbooks.txtar. Beside testscript's own
// commands they have:
//
//	kubectl ARGS...   as the cluster's administrator
//	helm ARGS...      likewise
//	weft ARGS...      Weft's CLI, as on a laptop
//	node NAME ARGS... a command inside a node of the lab
//	lab ARGS...       weft-lab for this lab
//	eventually TIME CMD... one of the above again and again until it succeeds
//	                  (with ! before eventually: until it fails)
//	runbook FILE...   lines of a runbook as typed; see runbook.go
//
// All but runbook record their output for stdout and stderr, and take a leading
// exclamation mark. Each script has a namespace of its own, $NS; $CHART is the
// chart's folder, $LAB the lab's name.
//
// The scripts of test/incidents replay what went wrong elsewhere; test/modes.txtar
// runs the connectivity test in every mode of the network. They bring up a lab of
// their own, and have these commands, too:
//
//	install ARGS...   test/install.sh for that lab
//	outside ARGS...   Weft's CLI on the lab's host outside of the cluster
//	capture VAR...    sets variables to the words of the last output
//
// Each incident runs twice: with the condition unguarded, and with guarded. $IMAGE is the
// image's archive.
package e2e
