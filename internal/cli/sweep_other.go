// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package cli

import "errors"

func sweepNode() error { return errors.New("nodes run Linux") }
