// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package datapath

import (
	"errors"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"

	"github.com/weft-net/weft/internal/datapath/reason"
)

// The command line is built for other systems too; the datapath is Linux.

func probeSockets() error                    { return errors.ErrUnsupported }
func netnsCookie() (uint64, error)           { return 0, errors.ErrUnsupported }
func cgroupID(string) (uint64, error)        { return 0, errors.ErrUnsupported }
func probe(string) (features, error)         { return features{}, errors.ErrUnsupported }
func flock(int) error                        { return errors.ErrUnsupported }
func checkEthernet(int) error                { return errors.ErrUnsupported }
func detachLink(link.Link) error             { return errors.ErrUnsupported }
func indexOf(string) (int, error)            { return 0, errors.ErrUnsupported }
func removeFilters(int, []reason.Hook) error { return errors.ErrUnsupported }
func removeAllFilters() error                { return errors.ErrUnsupported }

func mapTypes(*ebpf.Map) (key, value btf.Type, ok bool, err error) {
	return nil, nil, false, errors.ErrUnsupported
}

func attachFilters(int, []reason.Hook, programs) error {
	return errors.ErrUnsupported
}

func filterSites() ([]site, error) { return nil, errors.ErrUnsupported }

func filteredDevices([]reason.Hook) ([]Device, error) { return nil, errors.ErrUnsupported }

func runningFilters(int, reason.Hook) ([]ebpf.ProgramID, error) { return nil, errors.ErrUnsupported }
