// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"fmt"
	"maps"
	"strconv"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	ciliumv2 "github.com/weft-net/weft/api/cilium.io/v2"
)

// Snapshot is what the cache held at one moment. Its rows must not be changed.
type Snapshot struct {
	Nodes       map[string]*Node
	CiliumNodes map[string]*CiliumNode
}

// Cache follows Nodes and CiliumNodes.
type Cache struct {
	client  *Client
	changed chan struct{}

	mu          sync.Mutex
	nodes       map[string]*Node
	ciliumNodes map[string]*CiliumNode
	waiting     map[string]string // resources that have not been listed yet, and why
}

// NewCache returns an empty cache, which Run fills.
func NewCache(c *Client) *Cache {
	return &Cache{
		client: c, changed: make(chan struct{}, 1),
		nodes: map[string]*Node{}, ciliumNodes: map[string]*CiliumNode{},
		waiting: map[string]string{"nodes": "not asked yet", ciliumv2.CiliumNodeResource: "not asked yet"},
	}
}

// Changed has an element when something changed since it was read last.
func (c *Cache) Changed() <-chan struct{} { return c.changed }

// Waiting says what the cache has not heard of yet; empty once it is complete.
func (c *Cache) Waiting() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, resource := range []string{ciliumv2.CiliumNodeResource, "nodes"} {
		if why, ok := c.waiting[resource]; ok {
			return resource + ": " + why
		}
	}
	return ""
}

// Snapshot returns what is known now.
func (c *Cache) Snapshot() Snapshot {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Snapshot{Nodes: maps.Clone(c.nodes), CiliumNodes: maps.Clone(c.ciliumNodes)}
}

// Run follows both resources until ctx ends.
func (c *Cache) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return c.follow(ctx, c.client.core, "nodes", &corev1.Node{}, &corev1.NodeList{}, &side[Node, *Node]{
			c: c, name: "nodes", rows: &c.nodes, cut: cutNode,
		})
	})
	g.Go(func() error {
		return c.follow(ctx, c.client.cilium, ciliumv2.CiliumNodeResource, &ciliumv2.CiliumNode{}, &ciliumv2.CiliumNodeList{}, &side[CiliumNode, *CiliumNode]{
			c: c, name: ciliumv2.CiliumNodeResource, rows: &c.ciliumNodes, cut: cutCiliumNode,
		})
	})
	return g.Wait()
}

func (c *Cache) notify() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// saw puts a CiliumNode in that a write of ours returned, so that the next round
// does not repeat the write because the watch has not brought it yet.
func (c *Cache) saw(o *ciliumv2.CiliumNode) *CiliumNode {
	row := cutCiliumNode(o)
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.ciliumNodes[row.Name]; old != nil && old.UID == row.UID && newer(row.Version, old.Version) {
		c.ciliumNodes[row.Name] = row
	}
	return row
}

// newer compares resource versions of one resource, which are numbers that grow
// (KEP-5504).
func newer(a, b string) bool {
	x, err1 := strconv.ParseUint(a, 10, 64)
	y, err2 := strconv.ParseUint(b, 10, 64)
	return err1 != nil || err2 != nil || x > y
}

// follow runs one reflector. Its delays are jittered and grow to 15 s at most.
func (c *Cache) follow(ctx context.Context, rc *rest.RESTClient, resource string, kind, list runtime.Object, store cache.ReflectorStore) error {
	// What it would log is the same failure at every retry; Waiting says it.
	quiet := logr.Discard()
	r := cache.NewReflectorWithOptions(&listWatch{cache: c, rest: rc, resource: resource, list: list}, kind, store, cache.ReflectorOptions{
		Name: resource, Logger: &quiet,
		Backoff: &wait.Backoff{Duration: 500 * time.Millisecond, Factor: 2, Jitter: 1, Steps: 20, Cap: 15 * time.Second},
	})
	r.RunWithContext(klog.NewContext(ctx, quiet))
	return nil
}

// failed remembers why a resource could not be listed or watched.
func (c *Cache) failed(resource string, err error) {
	c.client.log.Debug("list or watch failed", "resource", resource, "error", err)
	why := Explain(err)
	if apierrors.IsNotFound(err) {
		why = fmt.Sprintf("the cluster has no %s: apply the chart's custom resource definitions", resource)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.waiting[resource]; ok {
		c.waiting[resource] = why
	}
}

// listWatch is one cluster-wide resource.
type listWatch struct {
	cache    *Cache
	rest     *rest.RESTClient
	resource string
	list     runtime.Object // an empty list to copy
}

// ListWithContext gets all objects.
func (l *listWatch) ListWithContext(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
	out := l.list.DeepCopyObject()
	if err := l.rest.Get().Resource(l.resource).VersionedParams(&opts, l.cache.client.params).Do(ctx).Into(out); err != nil {
		l.cache.failed(l.resource, err)
		return nil, fmt.Errorf("list %s: %w", l.resource, err)
	}
	return out, nil
}

// WatchWithContext starts a watch.
func (l *listWatch) WatchWithContext(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
	opts.Watch = true
	w, err := l.rest.Get().Resource(l.resource).VersionedParams(&opts, l.cache.client.params).Watch(ctx)
	if err != nil {
		l.cache.failed(l.resource, err)
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

// row is what the cache keeps of an object.
type row[R any] interface {
	*R
	key() string
	version() string
	same(*R) bool
}

// side is the reflector's store of one resource.
type side[R any, P row[R]] struct {
	c    *Cache
	name string
	rows *map[string]*R
	cut  func(o any) *R
}

// put reports whether what the row says is news.
func (s *side[R, P]) put(rows map[string]*R, o any) bool {
	r := P(s.cut(o))
	if r == nil {
		return false
	}
	old := P(rows[r.key()])
	if old != nil && !newer(r.version(), old.version()) {
		return false // a write of ours came back before the watch did
	}
	rows[r.key()] = (*R)(r)
	return old == nil || !r.same((*R)(old))
}

// Add implements cache.ReflectorStore.
func (s *side[R, P]) Add(o any) error { return s.Update(o) }

// Update implements cache.ReflectorStore.
func (s *side[R, P]) Update(o any) error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.put(*s.rows, o) {
		s.c.notify()
	}
	return nil
}

// Delete implements cache.ReflectorStore.
func (s *side[R, P]) Delete(o any) error {
	r := P(s.cut(o))
	if r == nil {
		return nil
	}
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	delete(*s.rows, r.key())
	s.c.notify()
	return nil
}

// Replace implements cache.ReflectorStore.
func (s *side[R, P]) Replace(list []any, _ string) error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	rows := make(map[string]*R, len(list))
	for _, o := range list {
		s.put(rows, o)
	}
	*s.rows = rows
	delete(s.c.waiting, s.name)
	s.c.notify()
	return nil
}

// Resync implements cache.ReflectorStore.
func (s *side[R, P]) Resync() error { return nil }

// Transformer cuts objects down before the reflector holds a whole list of them.
func (s *side[R, P]) Transformer() cache.TransformFunc {
	return func(o any) (any, error) { return slim(o), nil }
}
