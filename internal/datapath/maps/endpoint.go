// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"github.com/cilium/ebpf"

	"github.com/weft-net/weft/internal/datapath/object"
	"github.com/weft-net/weft/internal/table"
)

// EndpointRow is one local endpoint as the programs see it.
type EndpointRow struct {
	ID         uint16         `json:"id"` // 1 to MaxEndpoints-1
	IfIndex    int            `json:"ifindex"`
	IfName     string         `json:"ifname,omitempty"` // not in the kernel; for display
	MAC        string         `json:"mac"`              // of the pod's end
	HostMAC    string         `json:"hostMAC"`
	IPv4       netip.Addr     `json:"ipv4"` // invalid: none
	IPv6       netip.Addr     `json:"ipv6"`
	MTU        int            `json:"mtu"`        // bytes from the network header on
	Generation uint32         `json:"generation"` // not 0; differs each time an id is used again
	Identity   table.Identity `json:"identity"`
	Revision   uint32         `json:"revision"` // of its policy, 0 for now
}

// TableHeader names the columns of TableRow.
func (EndpointRow) TableHeader() []string {
	return []string{"ENDPOINT", "INTERFACE", "MAC", "HOST-MAC", "IPV4", "IPV6", "MTU", "IDENTITY", "GENERATION"}
}

// TableRow renders the row under TableHeader.
func (r EndpointRow) TableRow() []string {
	iface := strconv.Itoa(r.IfIndex)
	if r.IfName != "" {
		iface = r.IfName
	}
	return []string{
		strconv.Itoa(int(r.ID)), iface, r.MAC, r.HostMAC, showAddr(r.IPv4), showAddr(r.IPv6),
		strconv.Itoa(r.MTU), r.Identity.String(), strconv.FormatUint(uint64(r.Generation), 10),
	}
}

func showAddr(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// EndpointMap is weft_ep together with weft_dev, which tells what a device is.
type EndpointMap struct{ rows, devices *ebpf.Map }

// Upsert writes the endpoint's row, then makes its device find it.
func (m *EndpointMap) Upsert(r EndpointRow) error {
	row, err := encodeEndpoint(r)
	if err != nil {
		return fmt.Errorf("endpoint %d: %w", r.ID, err)
	}
	var old object.DatapathWeftEndpoint
	if err := m.rows.Lookup(uint32(r.ID), &old); err != nil {
		return fmt.Errorf("endpoint %d: map weft_ep: %w", r.ID, err)
	}
	if err := put(m.rows, uint32(r.ID), row); err != nil {
		return fmt.Errorf("endpoint %d: %w", r.ID, err)
	}
	if err := put(m.devices, row.Ifindex, object.DatapathWeftDevice{Kind: devicePod, Endpoint: uint32(r.ID)}); err != nil {
		return fmt.Errorf("endpoint %d: %w", r.ID, err)
	}
	if old.Generation != 0 && old.Ifindex != row.Ifindex {
		return m.forgetDevice(old.Ifindex, r.ID)
	}
	return nil
}

func encodeEndpoint(r EndpointRow) (object.DatapathWeftEndpoint, error) {
	var row object.DatapathWeftEndpoint
	switch {
	case r.ID == 0 || int(r.ID) >= MaxEndpoints:
		return row, fmt.Errorf("id must be 1 to %d", MaxEndpoints-1)
	case r.Generation == 0:
		return row, errors.New("generation must not be 0")
	case r.IfIndex <= 0:
		return row, errors.New("interface index must be positive")
	case r.MTU < 68 || r.MTU > 65536:
		return row, fmt.Errorf("MTU %d is not within 68 to 65536", r.MTU)
	}
	mac, err := net.ParseMAC(r.MAC)
	if err != nil || len(mac) != 6 {
		return row, fmt.Errorf("MAC %q is not an Ethernet address", r.MAC)
	}
	host, err := net.ParseMAC(r.HostMAC)
	if err != nil || len(host) != 6 {
		return row, fmt.Errorf("host MAC %q is not an Ethernet address", r.HostMAC)
	}
	row = object.DatapathWeftEndpoint{
		Ifindex: uint32(r.IfIndex), Generation: r.Generation, Revision: r.Revision,
		Identity: uint32(r.Identity), Mtu: uint32(r.MTU), V4: raw4(r.IPv4), V6: raw6(r.IPv6),
	}
	copy(row.Mac[:], mac)
	copy(row.HostMac[:], host)
	return row, nil
}

// Delete empties the row of an endpoint. Deleting what is not there is no error.
func (m *EndpointMap) Delete(id uint16) error {
	var old object.DatapathWeftEndpoint
	if err := m.rows.Lookup(uint32(id), &old); err != nil {
		return fmt.Errorf("endpoint %d: map weft_ep: %w", id, err)
	}
	// The row goes last: while it is there, whoever was killed half-way finds it
	// and repeats this. Nobody would look for a device that leads to no row.
	if err := m.forgetDevice(old.Ifindex, id); err != nil {
		return err
	}
	if err := put(m.rows, uint32(id), object.DatapathWeftEndpoint{}); err != nil {
		return fmt.Errorf("endpoint %d: %w", id, err)
	}
	return nil
}

// forgetDevice removes a device that still leads to the endpoint: by now its
// index may belong to another one's.
func (m *EndpointMap) forgetDevice(ifindex uint32, id uint16) error {
	var d object.DatapathWeftDevice
	err := m.devices.Lookup(ifindex, &d)
	if errors.Is(err, ebpf.ErrKeyNotExist) || (err == nil && (d.Kind != devicePod || d.Endpoint != uint32(id))) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("endpoint %d: map weft_dev: %w", id, err)
	}
	return remove(m.devices, ifindex)
}

// List returns all endpoints by ascending id.
func (m *EndpointMap) List() ([]EndpointRow, error) {
	keys, vals, err := dump[uint32, object.DatapathWeftEndpoint](m.rows)
	if err != nil {
		return nil, err
	}
	rows := []EndpointRow{}
	for i, k := range keys {
		if v := vals[i]; v.Generation != 0 {
			rows = append(rows, decodeEndpoint(uint16(k), v))
		}
	}
	return rows, nil
}

func decodeEndpoint(id uint16, v object.DatapathWeftEndpoint) EndpointRow {
	r := EndpointRow{
		ID: id, IfIndex: int(v.Ifindex), MAC: net.HardwareAddr(v.Mac[:]).String(), HostMAC: net.HardwareAddr(v.HostMac[:]).String(),
		MTU: int(v.Mtu), Generation: v.Generation, Identity: table.Identity(v.Identity), Revision: v.Revision,
	}
	if v.V4 != 0 {
		r.IPv4 = addr4(v.V4)
	}
	if a := addr6(v.V6); !a.IsUnspecified() {
		r.IPv6 = a
	}
	return r
}

// Kinds of devices, as enum weft_device_kind.
const (
	devicePod = 1
	deviceNet = 2
)

// Devices returns which endpoint each device index leads to, as weft_dev has it;
// 0 stands for a device of the node.
func (m *EndpointMap) Devices() (map[int]uint16, error) {
	keys, vals, err := dump[uint32, object.DatapathWeftDevice](m.devices)
	if err != nil {
		return nil, err
	}
	out := make(map[int]uint16, len(keys))
	for i, k := range keys {
		out[int(k)] = uint16(vals[i].Endpoint)
	}
	return out, nil
}

// SetNetDevices tells the programs which devices carry from_net and to_net: only
// through these may a connection be fast.
func (m *EndpointMap) SetNetDevices(indexes []int) error {
	keys, vals, err := dump[uint32, object.DatapathWeftDevice](m.devices)
	if err != nil {
		return err
	}
	keep := map[uint32]bool{}
	var errs []error
	for _, i := range indexes {
		keep[uint32(i)] = true
		errs = append(errs, put(m.devices, uint32(i), object.DatapathWeftDevice{Kind: deviceNet}))
	}
	for i, k := range keys {
		if vals[i].Kind == deviceNet && !keep[k] {
			errs = append(errs, remove(m.devices, k))
		}
	}
	return errors.Join(errs...)
}
