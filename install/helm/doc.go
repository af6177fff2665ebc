// SPDX-License-Identifier: Apache-2.0

// Package helm holds the tests of the chart in the folder weft: they render it
// with the helm that `make tools` compiles.
package helm
