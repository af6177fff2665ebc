// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/weft-net/weft/internal/datapath/object"
	"github.com/weft-net/weft/internal/table"
)

// LBRow is one line of the load-balancing maps, as Cilium's users know them: slot
// 0 is the frontend itself, each further one a backend.
type LBRow struct {
	Frontend  string   `json:"frontend"` // 10.96.0.1:443/TCP
	Slot      int      `json:"slot"`
	ServiceID uint32   `json:"serviceID"`
	Backend   string   `json:"backend"` // of slot 0: none
	BackendID uint32   `json:"backendID,omitempty"`
	Flags     []string `json:"flags,omitempty"`
}

// TableHeader names the columns of TableRow.
func (LBRow) TableHeader() []string {
	return []string{"SERVICE ADDRESS", "BACKEND ADDRESS (REVNAT_ID) (SLOT)"}
}

// TableRow renders the row under TableHeader.
func (r LBRow) TableRow() []string {
	s := fmt.Sprintf("%s (%d) (%d)", r.Backend, r.ServiceID, r.Slot)
	if len(r.Flags) > 0 {
		s += " [" + strings.Join(r.Flags, ", ") + "]"
	}
	return []string{fmt.Sprintf("%s (%d)", r.Frontend, r.Slot), s}
}

// LB lists frontends and their backends, line by line.
func (m *ServiceMap) LB() ([]LBRow, error) {
	fs, err := m.List()
	if err != nil {
		return nil, err
	}
	out := []LBRow{}
	for _, f := range fs {
		name := f.Key.String()
		none := netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
		if f.Key.Addr.Addr().Is4() {
			none = netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
		}
		out = append(out, LBRow{Frontend: name, ServiceID: f.ServiceID, Backend: none.String(), Flags: lbFlags(f)})
		for i, b := range f.Backends {
			r := LBRow{
				Frontend: name, Slot: i + 1, ServiceID: f.ServiceID, BackendID: b.ID,
				Backend: b.Addr.String() + "/" + table.ProtoName(b.Proto),
			}
			if b.Terminating {
				r.Flags = append(r.Flags, "terminating")
			}
			out = append(out, r)
		}
	}
	return out, nil
}

// lbFlags are the properties of a frontend, in Cilium's words where it has them.
func lbFlags(f table.Frontend) []string {
	var out []string
	if f.Type != "" {
		out = append(out, string(f.Type))
	}
	if f.Flags&table.FrontendLocal != 0 {
		out = append(out, "Local")
	}
	if f.Flags&table.FrontendSources != 0 {
		out = append(out, "check source-range")
	}
	if f.Flags&table.FrontendMaglev != 0 {
		out = append(out, table.AlgorithmMaglev)
	}
	if f.Affinity != 0 {
		out = append(out, fmt.Sprintf("sessionAffinity %s", f.Affinity))
	}
	switch {
	case f.Type == table.FrontendClusterIP:
		out = append(out, "non-routable")
	case f.Type == table.FrontendHostPort && f.Key.Addr.Addr().IsLoopback():
		out = append(out, "loopback")
	}
	return out
}

// BackendRow is one entry of weft_be.
type BackendRow struct {
	ID    uint32 `json:"id"`
	Addr  string `json:"addr"`
	State string `json:"state"`
}

// TableHeader names the columns of TableRow.
func (BackendRow) TableHeader() []string { return []string{"ID", "BACKEND ADDRESS", "STATE"} }

// TableRow renders the row under TableHeader.
func (r BackendRow) TableRow() []string {
	return []string{strconv.FormatUint(uint64(r.ID), 10), r.Addr, r.State}
}

// Backends lists the backends that frontends name, by id.
func (m *ServiceMap) Backends() ([]BackendRow, error) {
	_, backends, err := m.read()
	if err != nil {
		return nil, err
	}
	out := []BackendRow{}
	for id, v := range backends {
		if v.Proto == 0 {
			continue
		}
		r := BackendRow{ID: id, Addr: backendAddr(v).String() + "/" + table.ProtoName(v.Proto), State: "active"}
		if v.Flags&backendTerminating != 0 {
			r.State = "terminating"
		}
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b BackendRow) int { return cmp.Compare(a.ID, b.ID) })
	return out, nil
}

// SocketRow is one entry of weft_sk: a socket that talks to a backend and is told
// that it is the service.
type SocketRow struct {
	Cookie  uint64         `json:"cookie"` // SO_COOKIE of the socket
	Proto   uint8          `json:"proto"`
	Backend netip.AddrPort `json:"backend"`
	Service netip.AddrPort `json:"service"`
}

// TableHeader names the columns of TableRow.
func (SocketRow) TableHeader() []string {
	return []string{"SOCKET", "BACKEND ADDRESS", "SERVICE ADDRESS"}
}

// TableRow renders the row under TableHeader.
func (r SocketRow) TableRow() []string {
	proto := "/" + table.ProtoName(r.Proto)
	return []string{strconv.FormatUint(r.Cookie, 10), r.Backend.String() + proto, r.Service.String() + proto}
}

// Sockets lists the sockets that were sent to backends; those closed meanwhile
// among them, until others need their place.
func (m *ServiceMap) Sockets() ([]SocketRow, error) {
	keys, vals, err := dump[object.DatapathWeftSkKey, object.DatapathWeftWanted](m.sockets)
	if err != nil {
		return nil, err
	}
	out := make([]SocketRow, 0, len(keys))
	for i, k := range keys {
		out = append(out, SocketRow{
			Cookie: k.Cookie, Proto: vals[i].Proto,
			Backend: netip.AddrPortFrom(unmapped(k.Addr), port(k.Port)), Service: netip.AddrPortFrom(unmapped(vals[i].Addr), port(vals[i].Port)),
		})
	}
	slices.SortFunc(out, func(a, b SocketRow) int { return cmp.Or(cmp.Compare(a.Cookie, b.Cookie), a.Backend.Compare(b.Backend)) })
	return out, nil
}

// Unserved returns those backends that no frontend has any more.
func (m *ServiceMap) Unserved(backends []Gone) []Gone {
	type served struct {
		addr  netip.AddrPort
		proto uint8
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	has := map[served]bool{}
	if m.memory != nil {
		for id := range m.memory.refs {
			v := m.memory.backends[id]
			has[served{backendAddr(v), v.Proto}] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(backends), func(g Gone) bool { return has[served{g.Backend, g.Frontend.Proto}] })
}
