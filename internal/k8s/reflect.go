// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/cilium/statedb"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	ciliumv2 "github.com/weft-net/weft/api/cilium.io/v2"
	"github.com/weft-net/weft/internal/arrival"
	"github.com/weft-net/weft/internal/table"
)

// Names of the reflectors, as the status shows them.
const (
	nodesResource = "nodes"
)

// Tables are what the reflectors write.
type Tables struct {
	DB    *statedb.DB
	Nodes statedb.RWTable[*table.Node]
	Pods  statedb.RWTable[*table.RemotePod]
	// When the events behind the rows arrived; nil: nobody asks.
	NodesArrived, PodsArrived *arrival.Log
	// Services are reflected only where somebody wants them; nil: nobody does.
	Services *ServiceTables
}

// Reflect carries Nodes, CiliumNodes and CiliumEndpoints into tables, and
// Services with their EndpointSlices and this node's pods with hostPorts.
type Reflect struct {
	client   *Client
	tables   Tables
	nodes    *nodeStore
	pods     *podStore
	services *serviceStores // nil: nobody asks for them
}

// NewReflect registers the tables' initializers; they are done when the first
// full list has come, however long that takes.
func NewReflect(client *Client, tables Tables) *Reflect {
	txn := tables.DB.WriteTxn(tables.Nodes, tables.Pods)
	defer txn.Commit()
	r := &Reflect{
		client: client, tables: tables,
		nodes: &nodeStore{
			tables: tables, local: client.node, pool: client.pool, multi: client.multi,
			nodes: map[string]*corev1.Node{}, ciliumNodes: map[string]*ciliumv2.CiliumNode{},
			ownChanged: make(chan struct{}, 1),
		},
	}
	nodesDone := tables.Nodes.RegisterInitializer(txn, nodesResource)
	ciliumNodesDone := tables.Nodes.RegisterInitializer(txn, ciliumv2.CiliumNodeResource)
	podsDone := tables.Pods.RegisterInitializer(txn, ciliumv2.CiliumEndpointResource)
	once := func(name string, done func(statedb.WriteTxn)) func(statedb.WriteTxn) {
		client.conn.expect(name)
		var o sync.Once
		return func(txn statedb.WriteTxn) { o.Do(func() { done(txn); client.conn.listed(name) }) }
	}
	r.nodes.nodesDone = once(nodesResource, nodesDone)
	r.nodes.ciliumNodesDone = once(ciliumv2.CiliumNodeResource, ciliumNodesDone)
	r.pods = &podStore{tables: tables, done: once(ciliumv2.CiliumEndpointResource, podsDone)}
	if tables.Services != nil {
		r.services = newServiceStores(tables.DB, *tables.Services, once)
		if tables.Services.HostPorts != nil {
			r.services.pods = newHostPortStore(tables.DB, tables.Services, once)
		}
	}
	return r
}

// Run reflects until ctx ends.
func (r *Reflect) Run(ctx context.Context) error {
	c := r.client
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return c.reflect(ctx, listWatch{rest: c.core, resource: nodesResource, list: &corev1.NodeList{}}, &corev1.Node{}, nodeSide{r.nodes})
	})
	g.Go(func() error {
		lw := listWatch{rest: c.cilium, resource: ciliumv2.CiliumNodeResource, list: &ciliumv2.CiliumNodeList{}}
		return c.reflect(ctx, lw, &ciliumv2.CiliumNode{}, ciliumNodeSide{r.nodes})
	})
	g.Go(func() error {
		lw := listWatch{rest: c.cilium, resource: ciliumv2.CiliumEndpointResource, list: &ciliumv2.CiliumEndpointList{}}
		return c.reflect(ctx, lw, &ciliumv2.CiliumEndpoint{}, r.pods)
	})
	if r.services != nil {
		g.Go(func() error {
			lw := listWatch{rest: c.core, resource: servicesResource, list: &corev1.ServiceList{}, selector: forNodesProxy}
			return c.reflect(ctx, lw, &corev1.Service{}, r.services.services)
		})
		g.Go(func() error {
			lw := listWatch{rest: c.discovery, resource: endpointSlicesResource, list: &discoveryv1.EndpointSliceList{}, selector: forNodesProxy}
			return c.reflect(ctx, lw, &discoveryv1.EndpointSlice{}, r.services.slices)
		})
	}
	if r.services != nil && r.services.pods != nil {
		g.Go(func() error {
			lw := listWatch{rest: c.core, resource: hostPortsResource, list: &corev1.PodList{}, fields: ofNode(c.node)}
			return c.reflect(ctx, lw, &corev1.Pod{}, r.services.pods)
		})
	}
	return g.Wait()
}

// reflect runs one reflector. Its delays grow to 15 s at most, jittered, so that
// a cluster's agents do not return to a restarted API server at one moment, and
// still all of them within a quarter of a minute.
func (c *Client) reflect(ctx context.Context, lw listWatch, kind runtime.Object, store cache.ReflectorStore) error {
	lw.client = c
	logger := discardLogger()
	ctx = klog.NewContext(ctx, logger)
	r := cache.NewReflectorWithOptions(&lw, kind, store, cache.ReflectorOptions{
		Name: lw.resource, Logger: &logger,
		Backoff: &wait.Backoff{Duration: 500 * time.Millisecond, Factor: 2, Jitter: 1, Steps: 20, Cap: 15 * time.Second},
	})
	r.RunWithContext(ctx)
	return nil
}

// listWatch is one resource of all namespaces, with an account of each call.
type listWatch struct {
	client   *Client
	rest     *rest.RESTClient
	resource string
	list     runtime.Object // an empty list to copy
	selector string         // of labels; empty: all
	fields   string         // selector of fields; empty: all
}

// ListWithContext gets all objects.
func (l *listWatch) ListWithContext(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
	out := l.list.DeepCopyObject()
	opts.LabelSelector, opts.FieldSelector = l.selector, l.fields
	err := l.rest.Get().Resource(l.resource).VersionedParams(&opts, l.client.params).Do(ctx).Into(out)
	l.client.conn.noteList(l.resource, err)
	if err != nil {
		l.client.log.Debug("list failed", "resource", l.resource, "error", err)
		return nil, fmt.Errorf("list %s: %w", l.resource, err)
	}
	return out, nil
}

// WatchWithContext starts a watch.
func (l *listWatch) WatchWithContext(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
	opts.Watch, opts.LabelSelector, opts.FieldSelector = true, l.selector, l.fields
	w, err := l.rest.Get().Resource(l.resource).VersionedParams(&opts, l.client.params).Watch(ctx)
	l.client.conn.noteList(l.resource, err)
	if err != nil {
		l.client.log.Debug("watch failed", "resource", l.resource, "error", err)
		// Not wrapped: the reflector judges by the error's type what to do next.
		return nil, err
	}
	return w, nil
}

// List implements cache.ListerWatcher; the reflector uses the form with a context.
func (l *listWatch) List(opts metav1.ListOptions) (runtime.Object, error) {
	return l.ListWithContext(context.Background(), opts)
}

// Watch implements cache.ListerWatcher; the reflector uses the form with a context.
func (l *listWatch) Watch(opts metav1.ListOptions) (watch.Interface, error) {
	return l.WatchWithContext(context.Background(), opts)
}
