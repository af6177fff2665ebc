// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

func memory(figures, []pod, string) error { return nil }
