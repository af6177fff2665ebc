// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"github.com/weft-net/weft/internal/datapath/object"
)

// LBCT_* of bpf/lib/lb.h.
const (
	lbctThere  = 0
	lbctBack   = 1
	lbctInside = 2

	lbctRemote = 1 << 8
	lbctFlags  = 1<<10 - 1 // all that are in use
)

// LBConnRow is one connection that came to a service packet by packet, from outside or
// from a pod past its socket, as the row says that leads back from the backend.
type LBConnRow struct {
	Proto   string         `json:"proto"`
	Client  netip.AddrPort `json:"client"`
	Service netip.AddrPort `json:"service"`
	Backend netip.AddrPort `json:"backend"`
	// Port is that of the node's address which the backend sees instead of the
	// client; 0: it sees the client.
	Port    uint16        `json:"port,omitempty"`
	State   string        `json:"state"`   // as NATRow's
	Expires time.Duration `json:"expires"` // from now; negative: expired, not yet collected
}

// TableHeader names the columns of TableRow.
func (LBConnRow) TableHeader() []string {
	return []string{"PROTO", "CLIENT", "SERVICE", "BACKEND", "SEEN-AS", "STATE", "EXPIRES"}
}

// TableRow renders the row under TableHeader.
func (r LBConnRow) TableRow() []string {
	seen := "client"
	if r.Port != 0 {
		seen = fmt.Sprintf("node:%d", r.Port)
	}
	return []string{
		r.Proto, r.Client.String(), r.Service.String(), r.Backend.String(), seen, r.State, r.Expires.Truncate(time.Second).String(),
	}
}

// CompareLBConnRows orders rows by service and client.
func CompareLBConnRows(a, b LBConnRow) int {
	return cmp.Or(a.Service.Compare(b.Service), cmp.Compare(a.Proto, b.Proto), a.Client.Compare(b.Client))
}

// LBConnMap is the connections to services, from outside and of pods past their sockets.
type LBConnMap struct {
	main4, main6, new4, new6 *ebpf.Map
	pods4, pods6             *ebpf.Map // young ones of pods
}

// lbKey is a key of either family.
type lbKey struct {
	client, addr     netip.Addr
	clientPort, port uint16 // host order
	proto, way       uint8
	pad              [2]uint8
}

func (k lbKey) valid() bool { return k.way <= lbctBack|lbctInside && k.pad == [2]uint8{} }

// drop removes the entries that f wants gone, at most limit (0: all), and returns
// their number. still is asked again right before.
func (m *LBConnMap) drop(f func(lbKey, object.DatapathWeftLbct) bool, limit int, still func(object.DatapathWeftLbct) bool) (n int, err error) {
	left := func() int {
		if limit > 0 && n >= limit {
			return -1
		}
		return max(0, limit-n)
	}
	for _, mm := range []*ebpf.Map{m.main4, m.new4, m.pods4} {
		c, e := purge(mm, func(k object.DatapathWeftLbct4Key, v object.DatapathWeftLbct) bool {
			return f(lbKey{addr4(k.Client), addr4(k.Addr), port(k.ClientPort), port(k.Port), k.Proto, k.Way, k.Pad}, v)
		}, left(), still)
		n, err = n+c, errors.Join(err, e)
	}
	for _, mm := range []*ebpf.Map{m.main6, m.new6, m.pods6} {
		c, e := purge(mm, func(k object.DatapathWeftLbct6Key, v object.DatapathWeftLbct) bool {
			return f(lbKey{addr6(k.Client), addr6(k.Addr), port(k.ClientPort), port(k.Port), k.Proto, k.Way, k.Pad}, v)
		}, left(), still)
		n, err = n+c, errors.Join(err, e)
	}
	return n, err
}

// List returns at most limit connections (0: all), expired ones included.
func (m *LBConnMap) List(limit int) ([]LBConnRow, error) {
	now, err := nowTick()
	if err != nil {
		return nil, fmt.Errorf("connections to services: %w", err)
	}
	rows := []LBConnRow{}
	_, err = m.drop(func(k lbKey, v object.DatapathWeftLbct) bool {
		if k.way&^lbctInside != lbctBack || (limit > 0 && len(rows) >= limit) {
			return false
		}
		service := addr6(v.Addr)
		if k.addr.Is4() {
			service = addr4(v.Addr.W[0])
		}
		rows = append(rows, LBConnRow{
			Proto: protoName(k.proto), Client: netip.AddrPortFrom(k.client, k.clientPort), Service: netip.AddrPortFrom(service, port(v.Port)),
			Backend: netip.AddrPortFrom(k.addr, k.port), Port: port(uint16(v.Nat)),
			State: natState(k.proto, v.Flags), Expires: duration(int64(v.Expires) - int64(now)),
		})
		return false
	}, 0, nil)
	if err != nil {
		return nil, fmt.Errorf("connections to services: %w", err)
	}
	return rows, nil
}

// lbConns removes what no program can have written.
func (j *scrub) lbConns(m *LBConnMap, backends uint32) (int, error) {
	return m.drop(func(k lbKey, v object.DatapathWeftLbct) bool {
		return !k.valid() || v.Expires > j.latest || v.Flags&^lbctFlags != 0 || v.Backend == 0 || v.Backend >= backends || v.Port == 0 || v.Spare != 0
	}, 0, nil)
}

// Flush forgets all connections and returns the number of rows. Those whose client
// goes on are made anew.
func (m *LBConnMap) Flush() (int, error) {
	return m.drop(func(lbKey, object.DatapathWeftLbct) bool { return true }, 0, nil)
}

// PurgeAddrs removes the rows of connections from and to the addresses, and returns how many.
func (m *LBConnMap) PurgeAddrs(addrs ...netip.Addr) (int, error) {
	return m.drop(func(k lbKey, v object.DatapathWeftLbct) bool {
		to := addr6(v.Addr)
		if k.client.Is4() {
			to = addr4(v.Addr.W[0])
		}
		return slices.ContainsFunc(addrs, func(a netip.Addr) bool { return a == k.client || a == k.addr || a == to })
	}, 0, nil)
}

// Sweep removes at most limit expired rows and returns their number.
func (m *LBConnMap) Sweep(limit int) (int, error) {
	now, err := nowTick()
	if err != nil {
		return 0, fmt.Errorf("connections to services: %w", err)
	}
	expired := func(v object.DatapathWeftLbct) bool { return int32(v.Expires-now) < 0 }
	return m.drop(func(_ lbKey, v object.DatapathWeftLbct) bool { return expired(v) }, limit, expired)
}
