// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/weft-net/weft/internal/datapath/object"
)

// Scrubbed counts what Scrub removed.
type Scrubbed struct {
	Conntrack, NAT, Devices, Fragments, Networks, Clients, LBConns int
}

// Total is the sum of all.
func (s Scrubbed) Total() int {
	return s.Conntrack + s.NAT + s.Devices + s.Fragments + s.Networks + s.Clients + s.LBConns
}

// Scrub removes what no program of ours can have written, or what outlived its
// endpoint, from the maps that nothing else compares with what is wanted:
// connections and translations whose endpoint is not there, has another
// generation or another address; those that would live longer than any timeout;
// devices that lead to no endpoint of theirs; addresses among the networks, where
// no reconciler looks for them; clients of services and their connections. It is
// safe while packets fly and pods come: an entry is judged by its endpoint's row
// as it is right before it is removed.
func (s *Set) Scrub() (Scrubbed, error) {
	j, err := s.newScrub()
	if err != nil {
		return Scrubbed{}, fmt.Errorf("scrub: %w", err)
	}
	var done Scrubbed
	var errs [7]error
	done.Conntrack, errs[0] = j.conntrack(s.CT)
	done.NAT, errs[1] = j.nat(s.NAT)
	done.Devices, errs[2] = j.devices()
	done.Fragments, errs[3] = j.fragments(s)
	done.Networks, errs[4] = j.networks(s.IPCache)
	done.Clients, errs[5] = s.Services.clients(j.now)
	done.LBConns, errs[6] = j.lbConns(s.LBConns, s.Services.backends.MaxEntries())
	if err := errors.Join(errs[:]...); err != nil {
		return done, fmt.Errorf("scrub: %w", err)
	}
	return done, nil
}

// scrub is what entries are judged by.
type scrub struct {
	endpoints *EndpointMap
	rows      map[uint16]object.DatapathWeftEndpoint // a snapshot
	now       uint32                                 // tick
	latest    uint32                                 // tick: nothing expires later
	fragment  uint32                                 // tick: no fragment's ports do
}

// slack are the ticks by which a program's clock may be ahead of ours while it writes.
const slack = 5

func (s *Set) newScrub() (*scrub, error) {
	now, err := nowTick()
	if err != nil {
		return nil, err
	}
	var cfg object.DatapathWeftConfig
	if err := s.Config.m.Lookup(uint32(0), &cfg); err != nil {
		return nil, fmt.Errorf("map weft_cfg: %w", err)
	}
	ids, rows, err := dump[uint32, object.DatapathWeftEndpoint](s.Endpoints.rows)
	if err != nil {
		return nil, err
	}
	j := &scrub{endpoints: s.Endpoints, now: now, rows: map[uint16]object.DatapathWeftEndpoint{}}
	for i, id := range ids {
		if rows[i].Generation != 0 {
			j.rows[uint16(id)] = rows[i]
		}
	}
	longest := max(cfg.Established, cfg.Syn, cfg.Closing, cfg.Answered, cfg.AnsweredStack, cfg.Unanswered, cfg.NatHold)
	// A longer timeout may have been in force when an entry was written.
	d := DefaultConfig().Timeouts
	j.latest = now + max(longest, ticks(d.Established, d.Established)) + slack
	j.fragment = now + max(cfg.Fragment, ticks(d.Fragment, d.Fragment)) + slack
	return j, nil
}

// owns tells whether an entry's endpoint lives and has the address.
func (j *scrub) owns(id uint16, generation uint32, a netip.Addr) bool {
	ok := func(row object.DatapathWeftEndpoint) bool {
		return row.Generation != 0 && row.Generation == generation && (addr4(row.V4) == a || addr6(row.V6) == a)
	}
	if ok(j.rows[id]) {
		return true
	}
	var row object.DatapathWeftEndpoint // the endpoint may be younger than the snapshot
	return j.endpoints.rows.Lookup(uint32(id), &row) == nil && ok(row)
}

// connection tells whether a conntrack entry can be true.
func (j *scrub) connection(pair [2]netip.Addr, v object.DatapathWeftCt) bool {
	src, dst := pair[0], pair[1]
	if v.Flags&ctOpenerHi != 0 {
		src, dst = dst, src
	}
	switch {
	case v.Expires > j.latest:
		return false
	case v.SrcEndpoint == 0 && v.DstEndpoint == 0:
		return v.Nat != 0 // of the host, whose port another flow had
	case v.SrcEndpoint != 0 && !j.owns(v.SrcEndpoint, v.SrcGeneration, src):
		return false
	}
	return v.DstEndpoint == 0 || j.owns(v.DstEndpoint, v.DstGeneration, dst)
}

func (j *scrub) conntrack(m *CTMap) (n int, err error) {
	for _, mm := range []*ebpf.Map{m.answered4, m.new4} {
		c, e := purge(mm, func(k object.DatapathWeftCt4Key, v object.DatapathWeftCt) bool {
			return !j.connection([2]netip.Addr{addr4(k.Addr[0]), addr4(k.Addr[1])}, v)
		}, 0, nil)
		n, err = n+c, errors.Join(err, e)
	}
	for _, mm := range []*ebpf.Map{m.answered6, m.new6} {
		c, e := purge(mm, func(k object.DatapathWeftCt6Key, v object.DatapathWeftCt) bool {
			return !j.connection([2]netip.Addr{addr6(k.Addr[0]), addr6(k.Addr[1])}, v)
		}, 0, nil)
		n, err = n+c, errors.Join(err, e)
	}
	return n, err
}

func (j *scrub) nat(m *NATMap) (int, error) {
	return m.drop(func(owner, _ netip.Addr, v object.DatapathWeftNat) bool {
		return v.Expires > j.latest || (v.Endpoint != 0 && !j.owns(v.Endpoint, v.Generation, owner))
	}, 0, nil)
}

// devices removes rows of devices that are no endpoint's; those of the node are
// SetNetDevices' business.
func (j *scrub) devices() (int, error) {
	m := j.endpoints.devices
	return purge(m, func(index uint32, v object.DatapathWeftDevice) bool {
		if v.Kind == deviceNet {
			return false
		}
		if v.Kind != devicePod {
			return true
		}
		var row object.DatapathWeftEndpoint
		err := j.endpoints.rows.Lookup(v.Endpoint, &row)
		return err != nil || row.Generation == 0 || row.Ifindex != index
	}, 0, nil)
}

// fragments also collects what expired, which nobody else does, without counting it.
func (j *scrub) fragments(s *Set) (n int, err error) {
	match := func(v object.DatapathWeftFrag) bool {
		if v.Expires > j.fragment {
			n++
		}
		return v.Expires < j.now || v.Expires > j.fragment
	}
	_, err4 := purge(s.raw[object.DatapathMapWeftFrag4], func(_ object.DatapathWeftFrag4Key, v object.DatapathWeftFrag) bool { return match(v) }, 0, nil)
	_, err6 := purge(s.raw[object.DatapathMapWeftFrag6], func(_ object.DatapathWeftFrag6Key, v object.DatapathWeftFrag) bool { return match(v) }, 0, nil)
	return n, errors.Join(err4, err6)
}

// networks removes single addresses from the tries: they belong to the hashes.
func (j *scrub) networks(m *IPCacheMap) (int, error) {
	n4, err4 := purge(m.net4, func(k object.DatapathWeftNet4Key, _ object.DatapathWeftIpcache) bool { return k.Prefixlen == 32 }, 0, nil)
	n6, err6 := purge(m.net6, func(k object.DatapathWeftNet6Key, _ object.DatapathWeftIpcache) bool { return k.Prefixlen == 128 }, 0, nil)
	return n4 + n6, errors.Join(err4, err6)
}
