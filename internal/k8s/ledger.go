// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	weftv1alpha1 "github.com/weft-net/weft/api/weft.dev/v1alpha1"
)

// ErrNoLedger is returned where a pool has no ledger: no operator has ever
// given out ranges of it, or somebody deleted it.
var ErrNoLedger = errors.New("does not exist")

// Ledger is what an agent needs of the ledger of a pool.
type Ledger struct {
	LedgerMark
	Grants     map[string][]netip.Prefix // by node
	Quarantine []LedgerRelease
	// Pools has the pool of each range of Grants, and Seqs the number of releases
	// of each pool, where the ledger is that of all pools.
	Pools map[netip.Prefix]string
	Seqs  map[string]uint64
}

// LedgerRelease is a range that a node gave back and nobody may have yet.
type LedgerRelease struct {
	CIDR netip.Prefix
	Node string
	Seq  uint64
	Pool string
}

// LedgerMark tells one state of a ledger from another.
type LedgerMark struct {
	Version string // metadata.resourceVersion
	Seq     uint64 // number of releases so far
}

// Holder returns the node to which the ledger gives p or a part of it, "" if
// there is none.
func (l *Ledger) Holder(p netip.Prefix) string {
	for node, ranges := range l.Grants {
		for _, r := range ranges {
			if r.Overlaps(p) {
				return node
			}
		}
	}
	return ""
}

// Ledger reads a pool's ledger. The read is not served from a cache: what it
// says was so after the call was made. The error wraps ErrNoLedger.
func (c *Client) Ledger(ctx context.Context, pool string) (*Ledger, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var obj weftv1alpha1.PodCIDRLedger
	err := c.weft.Get().Resource(weftv1alpha1.PodCIDRLedgerResource).Name(pool).Do(ctx).Into(&obj)
	if err = c.ledgerError(pool, err); err != nil {
		return nil, err
	}
	return readLedger(&obj)
}

func readLedger(obj *weftv1alpha1.PodCIDRLedger) (*Ledger, error) {
	l := &Ledger{
		LedgerMark: LedgerMark{Version: obj.ResourceVersion, Seq: uint64(max(obj.Spec.Seq, 0))},
		Grants:     make(map[string][]netip.Prefix, len(obj.Spec.Grants)),
	}
	for node, ranges := range obj.Spec.Grants {
		for _, r := range ranges {
			p, err := netip.ParsePrefix(string(r))
			if err != nil {
				return nil, fmt.Errorf("PodCIDRLedger %s: range of node %s: %w", obj.Name, node, err)
			}
			l.Grants[node] = append(l.Grants[node], p.Masked())
		}
	}
	for _, q := range obj.Spec.Quarantine {
		p, err := netip.ParsePrefix(string(q.CIDR))
		if err != nil {
			return nil, fmt.Errorf("PodCIDRLedger %s: range in quarantine: %w", obj.Name, err)
		}
		l.Quarantine = append(l.Quarantine, LedgerRelease{CIDR: p.Masked(), Node: q.Node, Seq: uint64(max(q.Seq, 0)), Pool: obj.Name})
	}
	return l, nil
}

// LedgerMark reads of a ledger no more than tells whether there is news: the
// ledger of a large cluster weighs hundreds of KiB. The error wraps ErrNoLedger.
func (c *Client) LedgerMark(ctx context.Context, pool string) (LedgerMark, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var meta metav1.PartialObjectMetadata
	err := c.weft.Get().Resource(weftv1alpha1.PodCIDRLedgerResource).Name(pool).
		SetHeader("Accept", acceptMetadata).Do(ctx).Into(&meta)
	if err = c.ledgerError(pool, err); err != nil {
		return LedgerMark{}, err
	}
	m := LedgerMark{Version: meta.ResourceVersion}
	if seq, err := strconv.ParseUint(meta.Annotations[weftv1alpha1.ReleaseSeqAnnotation], 10, 64); err == nil {
		m.Seq = seq
	}
	return m, nil
}

// ledgerError notes the outcome of a call for a ledger and names the ledger.
func (c *Client) ledgerError(pool string, err error) error {
	c.conn.note("podcidrledger "+pool, err)
	if apierrors.IsNotFound(err) {
		err = ErrNoLedger
	}
	return wrap(err, "PodCIDRLedger %s", pool)
}

// PodGone tells whether a pod is no more: the API server has none of that name,
// or another one. uid is that which the kubelet told the runtime. The pod of a
// file on the node has another uid at the API server, and counts as being there.
func (c *Client) PodGone(ctx context.Context, namespace, name, uid string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var pod metav1.PartialObjectMetadata
	err := c.core.Get().Namespace(namespace).Resource("pods").Name(name).
		SetHeader("Accept", acceptMetadata).Do(ctx).Into(&pod)
	if apierrors.IsNotFound(err) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("get pod %s/%s: %w", namespace, name, err)
	}
	_, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]
	return !mirror && uid != "" && string(pod.UID) != uid, nil
}
