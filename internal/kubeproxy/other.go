// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package kubeproxy

import (
	"context"
	"errors"
)

var errLinux = errors.New("nodes run Linux")

// Find is for nodes.
func Find(context.Context) ([]Object, error) { return nil, errLinux }

// Remove is for nodes.
func Remove(context.Context, func(Object)) error { return errLinux }
