// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"time"

	"github.com/cilium/statedb"

	"github.com/weft-net/weft/internal/table"
)

// hostPortInputs are the changes by which hostPorts come and go: what pods want, and
// the addresses that they have here. The latter are not taken from the pods' status,
// which for a while says the addresses of before a node was restarted.
type hostPortInputs struct {
	pods      statedb.ChangeIterator[*table.PodHostPorts]
	endpoints statedb.ChangeIterator[*table.Endpoint]
}

func (t tables) watchHostPorts() (in hostPortInputs, err error) {
	txn := t.db.WriteTxn(t.hostPorts, t.endpoints)
	defer txn.Commit()
	if in.pods, err = t.hostPorts.Changes(txn); err != nil {
		return in, err
	}
	in.endpoints, err = t.endpoints.Changes(txn)
	return in, err
}

func (in hostPortInputs) close() {
	if in.pods != nil {
		in.pods.Close()
		in.endpoints.Close()
	}
}

// takeHostPorts tells the model of all pods of which there is news up to txn.
func (s *services) takeHostPorts(in hostPortInputs, txn statedb.ReadTxn, wake *serviceWake) {
	if in.pods == nil {
		return
	}
	touched := map[string]time.Time{}
	pods, w := in.pods.Next(txn)
	wake.pods = w
	for c, rev := range pods {
		at := s.t.arrived.hostPorts.At(rev)
		touched[c.Object.FullName()] = at
		if c.Deleted {
			s.model.DeletePod(c.Object.Namespace, c.Object.Pod, at)
		}
	}
	s.t.arrived.hostPorts.Forget(s.t.hostPorts.Revision(txn))
	endpoints, w := in.endpoints.Next(txn)
	wake.endpoints = w
	for c := range endpoints {
		name := c.Object.Name()
		if _, known := touched[name]; !known && c.Object.Kind == table.EndpointPod {
			touched[name] = time.Time{}
		}
	}
	for name, at := range touched {
		if p, _, ok := s.t.hostPorts.Get(txn, table.HostPortsByPod.Query(name)); ok {
			s.model.SetPod(p, s.t.podAddrs(txn, p), at)
		}
	}
}

// podAddrs are the addresses of the pod of a name and UID on this node. One that
// the container runtime did not tell the UID of is taken by its name.
func (t tables) podAddrs(txn statedb.ReadTxn, p *table.PodHostPorts) (out []netip.Addr) {
	var youngest *table.Endpoint
	for e := range t.endpoints.List(txn, table.EndpointByName.Query(p.FullName())) {
		if e.State == table.EndpointReady && (e.PodUID == "" || e.PodUID == p.UID) && (youngest == nil || e.CreatedAt.After(youngest.CreatedAt)) {
			youngest = e
		}
	}
	if youngest == nil {
		return nil
	}
	for _, a := range []netip.Addr{youngest.IPv4, youngest.IPv6} {
		if a.IsValid() {
			out = append(out, a)
		}
	}
	return out
}
