// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"fmt"
	"sync"
	"time"

	"github.com/cilium/statedb"
	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"

	ciliumv2 "github.com/weft-net/weft/api/cilium.io/v2"
	"github.com/weft-net/weft/internal/table"
)

// nodeStore merges Node and CiliumNode of one name into a row. A row exists as
// long as the Node does.
type nodeStore struct {
	tables          Tables
	local           string
	pool            bool // Config.ClusterPool
	multi           bool // Config.MultiPool
	nodesDone       func(statedb.WriteTxn)
	ciliumNodesDone func(statedb.WriteTxn)
	ownChanged      chan struct{} // the local CiliumNode changed or went

	mu          sync.Mutex
	nodes       map[string]*corev1.Node // stripped
	ciliumNodes map[string]*ciliumv2.CiliumNode
}

// commit brings the rows of names up to date after an event that arrived at arrived.
func (s *nodeStore) commit(names []string, arrived time.Time, done func(statedb.WriteTxn)) error {
	txn := s.tables.DB.WriteTxn(s.tables.Nodes)
	defer txn.Abort()
	for _, name := range names {
		old, _, found := s.tables.Nodes.Get(txn, table.NodeByName.Query(name))
		n := s.nodes[name]
		if n == nil {
			if found {
				if _, _, err := s.tables.Nodes.Delete(txn, old); err != nil {
					return fmt.Errorf("node %s: %w", name, err)
				}
			}
			continue
		}
		row := nodeRow(n, s.ciliumNodes[name], name == s.local, s.pool)
		if found && sameNode(old, row) {
			continue // a heartbeat, not news
		}
		if _, _, err := s.tables.Nodes.Insert(txn, row); err != nil {
			return fmt.Errorf("node %s: %w", name, err)
		}
	}
	if done != nil {
		done(txn)
	}
	s.tables.NodesArrived.Note(s.tables.Nodes.Revision(txn), arrived)
	txn.Commit()
	return nil
}

func (s *nodeStore) notifyOwn() {
	select {
	case s.ownChanged <- struct{}{}:
	default:
	}
}

// nodeSide is the store of Nodes.
type nodeSide struct{ *nodeStore }

func (s nodeSide) Transformer() cache.TransformFunc {
	return func(o any) (any, error) {
		if n, ok := o.(*corev1.Node); ok {
			return stripNode(n), nil
		}
		return o, nil
	}
}

func (s nodeSide) Add(o any) error { return s.Update(o) }

func (s nodeSide) Update(o any) error {
	n, ok := o.(*corev1.Node)
	if !ok {
		return fmt.Errorf("nodes: unexpected %T", o)
	}
	arrived := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nodes[n.Name] = stripNode(n)
	return s.commit([]string{n.Name}, arrived, nil)
}

func (s nodeSide) Delete(o any) error {
	n, ok := o.(*corev1.Node)
	if !ok {
		return fmt.Errorf("nodes: unexpected %T", o)
	}
	arrived := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.nodes, n.Name)
	return s.commit([]string{n.Name}, arrived, nil)
}

func (s nodeSide) Replace(list []any, _ string) error {
	arrived := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	names := keysOf(s.nodes)
	s.nodes = make(map[string]*corev1.Node, len(list))
	for _, o := range list {
		if n, ok := o.(*corev1.Node); ok {
			s.nodes[n.Name] = stripNode(n)
			names = append(names, n.Name)
		}
	}
	return s.commit(names, arrived, s.nodesDone)
}

func (s nodeSide) Resync() error { return nil }

// ciliumNodeSide is the store of CiliumNodes.
type ciliumNodeSide struct{ *nodeStore }

func (s ciliumNodeSide) Add(o any) error { return s.Update(o) }

func (s ciliumNodeSide) Update(o any) error {
	n, ok := o.(*ciliumv2.CiliumNode)
	if !ok {
		return fmt.Errorf("ciliumnodes: unexpected %T", o)
	}
	arrived := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ciliumNodes[n.Name] = stripCiliumNode(n, s.multi)
	if n.Name == s.local {
		s.notifyOwn()
	}
	return s.commit([]string{n.Name}, arrived, nil)
}

func (s ciliumNodeSide) Delete(o any) error {
	n, ok := o.(*ciliumv2.CiliumNode)
	if !ok {
		return fmt.Errorf("ciliumnodes: unexpected %T", o)
	}
	arrived := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.ciliumNodes, n.Name)
	if n.Name == s.local {
		s.notifyOwn()
	}
	return s.commit([]string{n.Name}, arrived, nil)
}

func (s ciliumNodeSide) Replace(list []any, _ string) error {
	arrived := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	names := keysOf(s.ciliumNodes)
	s.ciliumNodes = make(map[string]*ciliumv2.CiliumNode, len(list))
	for _, o := range list {
		if n, ok := o.(*ciliumv2.CiliumNode); ok {
			s.ciliumNodes[n.Name] = stripCiliumNode(n, s.multi)
			names = append(names, n.Name)
		}
	}
	s.notifyOwn()
	return s.commit(names, arrived, s.ciliumNodesDone)
}

func (s ciliumNodeSide) Resync() error { return nil }

// podStore turns CiliumEndpoints into rows.
type podStore struct {
	tables Tables
	done   func(statedb.WriteTxn)
}

func (s *podStore) Transformer() cache.TransformFunc {
	return func(o any) (any, error) {
		if e, ok := o.(*ciliumv2.CiliumEndpoint); ok {
			return stripEndpoint(e), nil
		}
		return o, nil
	}
}

func (s *podStore) Add(o any) error { return s.Update(o) }

func (s *podStore) Update(o any) error {
	e, ok := o.(*ciliumv2.CiliumEndpoint)
	if !ok {
		return fmt.Errorf("ciliumendpoints: unexpected %T", o)
	}
	arrived := time.Now()
	txn := s.tables.DB.WriteTxn(s.tables.Pods)
	defer txn.Abort()
	if err := s.insert(txn, podRow(e)); err != nil {
		return err
	}
	s.commit(txn, arrived)
	return nil
}

// commit ends the work of an event that arrived at arrived.
func (s *podStore) commit(txn statedb.WriteTxn, arrived time.Time) {
	s.tables.PodsArrived.Note(s.tables.Pods.Revision(txn), arrived)
	txn.Commit()
}

func (s *podStore) insert(txn statedb.WriteTxn, row *table.RemotePod) error {
	old, _, found := s.tables.Pods.Get(txn, table.RemotePodByName.Query(row.Name()))
	if found && samePod(old, row) {
		return nil
	}
	if _, _, err := s.tables.Pods.Insert(txn, row); err != nil {
		return fmt.Errorf("ciliumendpoint %s: %w", row.Name(), err)
	}
	return nil
}

func (s *podStore) Delete(o any) error {
	e, ok := o.(*ciliumv2.CiliumEndpoint)
	if !ok {
		return fmt.Errorf("ciliumendpoints: unexpected %T", o)
	}
	arrived := time.Now()
	txn := s.tables.DB.WriteTxn(s.tables.Pods)
	defer txn.Abort()
	if _, _, err := s.tables.Pods.Delete(txn, podRow(e)); err != nil {
		return fmt.Errorf("ciliumendpoint %s/%s: %w", e.Namespace, e.Name, err)
	}
	s.commit(txn, arrived)
	return nil
}

func (s *podStore) Replace(list []any, _ string) error {
	arrived := time.Now()
	txn := s.tables.DB.WriteTxn(s.tables.Pods)
	defer txn.Abort()
	keep := make(map[string]bool, len(list))
	for _, o := range list {
		e, ok := o.(*ciliumv2.CiliumEndpoint)
		if !ok {
			continue
		}
		row := podRow(e)
		keep[row.Name()] = true
		if err := s.insert(txn, row); err != nil {
			return err
		}
	}
	for row := range s.tables.Pods.All(txn) {
		if keep[row.Name()] {
			continue
		}
		if _, _, err := s.tables.Pods.Delete(txn, row); err != nil {
			return fmt.Errorf("ciliumendpoint %s: %w", row.Name(), err)
		}
	}
	s.done(txn)
	s.commit(txn, arrived)
	return nil
}

func (s *podStore) Resync() error { return nil }

func keysOf[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	return keys
}

// discardLogger silences reflectors: their calls are accounted for by listWatch,
// and what they would log again is the same failure at every retry.
func discardLogger() logr.Logger { return logr.Discard() }
