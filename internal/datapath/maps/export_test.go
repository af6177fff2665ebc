// SPDX-License-Identifier: Apache-2.0

package maps

// ErrNoFunc is errNoFunc.
var ErrNoFunc = errNoFunc

// KernelFunc is kernelFunc of the running kernel.
func KernelFunc(name string) (uint32, error) { return kernelFunc(kernelBTF, name) }
